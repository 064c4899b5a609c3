//! The list of machines, as `--list` prints it and who gives no socket sees it.

use std::fmt;

use super::discover::{Machine, MonitorAt};
use super::namespace::Namespace;
use crate::text::printable;

/// The machines as `--list` prints them; never empty.
pub struct Table<'a>(pub &'a [Machine]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(
                "no QEMU with a QMP monitor is in sight (add -qmp unix:PATH,server=on,wait=off to a QEMU, \
                 or let qom-fuse start it: qom-fuse MOUNTPOINT -- QEMU-COMMAND)",
            );
        }
        write!(f, "{:>8}  {:<20}  SOCKET", "PID", "NAME")?;
        for machine in self.0 {
            for monitor in &machine.monitors {
                let name = machine.name.as_deref().map_or_else(|| "-".to_owned(), word);
                write!(f, "\n{:>8}  {name:<20}  ", machine.pid)?;
                match monitor {
                    MonitorAt::Address(address) => f.write_str(&word(address))?,
                    MonitorAt::Libvirt(domain) => {
                        write!(f, "{}  (held by libvirt)", word(&format!("libvirt:{domain}")))?;
                    }
                    MonitorAt::Held => f.write_str("(held by what started it)")?,
                }
                match machine.namespace(monitor) {
                    Namespace::Ours => {}
                    Namespace::Another => f.write_str("  (in another network namespace)")?,
                    Namespace::Unknown => f.write_str("  (namespace unknown)")?,
                }
            }
        }
        Ok(())
    }
}

/// The address of the first monitor that can be typed as it is, as a word for a shell.
pub fn suggested(machines: &[Machine]) -> Option<String> {
    let of = |machine| move |at| suggestion(machine, at);
    machines
        .iter()
        .find_map(|machine| machine.monitors.iter().find_map(of(machine)))
}

fn suggestion(machine: &Machine, at: &MonitorAt) -> Option<String> {
    let exact = |text: &str| printable(text) == text && !text.contains(char::REPLACEMENT_CHARACTER);
    match at {
        // A relative path leads nowhere: its folder may not be known. A comma of a path would begin an option.
        MonitorAt::Address(address) if address.starts_with('/') || address.starts_with("tcp:") => {
            (exact(address) && !address.contains(',') && machine.is_near(at)).then(|| word(address))
        }
        MonitorAt::Libvirt(domain) => exact(domain).then(|| word(&format!("libvirt:{domain}"))),
        _ => None,
    }
}

/// Somebody's text as one word for a shell, safe to print.
pub fn word(text: &str) -> String {
    let text = printable(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::discover;
    use super::*;
    use std::path::Path;

    #[test]
    fn table() {
        assert!(Table(&[]).to_string().contains("-qmp unix:"));
        let machine = |pid, name: &str, address: &str| Machine {
            name: Some(name.into()),
            monitors: vec![MonitorAt::Address(address.into())],
            ..discover::machine(pid, b"qemu\0-qmp\0tcp::1,server=on", Path::new("/")).unwrap()
        };
        let mut machines = vec![
            machine(7, "a\n  b", "/x;rm -rf ~\u{1b}[2J"),
            machine(8, "b", "relative"),
            machine(8, "b", "/\u{fffd}"),
        ];
        let text = Table(&machines).to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(
            text.contains(r"'a\n  b'") && text.contains(r"'/x;rm -rf ~\u{1b}[2J'"),
            "{text}"
        );
        assert_eq!(suggested(&machines), None);
        machines.push(machine(9, "c", "/it's"));
        assert_eq!(suggested(&machines).as_deref(), Some(r"'/it'\''s'"));
    }
}
