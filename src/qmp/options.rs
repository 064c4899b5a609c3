//! QEMU's `first,name=value,flag`, in which `,,` stands for a comma.

/// Options as QEMU's command line has them.
#[derive(Debug, Default)]
pub struct Options {
    /// What comes first, if it is no option itself.
    pub first: String,
    /// In their order; a flag is `on`.
    pub pairs: Vec<(String, String)>,
}

impl Options {
    /// Reads any options.
    pub fn new(text: &str) -> Options {
        Options::read(text, |index, part| index > 0 || part.contains('='))
    }

    /// Reads an address that options of these names may follow. A single comma that none of them follows belongs
    /// to the address.
    pub fn behind_address(text: &str, known: &[&str]) -> Options {
        let name = |part: &str| part.split('=').next().is_some_and(|name| known.contains(&name));
        Options::read(text, |index, part| index > 0 && name(part))
    }

    fn read(text: &str, is_option: impl Fn(usize, &str) -> bool) -> Options {
        const COMMA: &str = "\0";
        let mut options = Options::default();
        for (index, part) in text.replace(",,", COMMA).split(',').enumerate() {
            let part = part.replace(COMMA, ",");
            if is_option(index, &part) {
                let (name, value) = part.split_once('=').unwrap_or((&part, "on"));
                options.pairs.push((name.to_owned(), value.to_owned()));
            } else {
                let comma = if index > 0 { "," } else { "" };
                options.first.extend([comma, &part]);
            }
        }
        options
    }

    /// The value of an option.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub fn is_on(&self, name: &str) -> bool {
        matches!(self.get(name), Some("on" | "yes" | "true"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas() {
        let options = Options::new("unix:/a,,b,server,name=x,,y=z");
        assert_eq!(options.first, "unix:/a,b");
        assert!(options.is_on("server") && !options.is_on("name") && !options.is_on("wait"));
        assert_eq!(options.get("name"), Some("x,y=z"));
        let options = Options::new("guest=a,debug-threads=on");
        assert_eq!((options.first.as_str(), options.get("guest")), ("", Some("a")));
        let options = Options::behind_address("/a=b,q,,r,wait=off,s", &["wait"]);
        assert_eq!((options.first.as_str(), options.pairs.len()), ("/a=b,q,r,s", 1));
    }
}
