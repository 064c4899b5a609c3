//! The list of machines, as `--list` prints it and who gives no socket sees it.

use std::fmt;

use crate::daemon::machine::discover::{Machine, MonitorAt};
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
                let name = machine.name.as_deref().map(word);
                let domain = name.as_deref().unwrap_or("DOMAIN");
                let name = name.as_deref().unwrap_or("-");
                write!(f, "\n{:>8}  {name:<20}  ", machine.pid)?;
                match monitor {
                    MonitorAt::Address(address) => f.write_str(&word(address))?,
                    MonitorAt::Held => write!(
                        f,
                        "(held by what started it; under libvirt: virt-qemu-qmp-proxy {domain} SOCKET)"
                    )?,
                }
            }
        }
        Ok(())
    }
}

/// The address of the first monitor that can be typed as it is, as a word for a shell.
pub fn suggested(machines: &[Machine]) -> Option<String> {
    let monitors = machines.iter().flat_map(|machine| &machine.monitors);
    monitors.into_iter().find_map(|at| match at {
        // A relative path leads nowhere: its folder may not be known.
        MonitorAt::Address(address) if address.starts_with('/') || address.starts_with("tcp:") => {
            // A comma of a path would begin an option.
            let exact =
                printable(address) == *address && !address.contains([',', char::REPLACEMENT_CHARACTER]);
            exact.then(|| word(address))
        }
        _ => None,
    })
}

/// Somebody's text as one word for a shell, safe to print.
fn word(text: &str) -> String {
    let text = printable(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        assert!(Table(&[]).to_string().contains("-qmp unix:"));
        let machine = |pid, name: &str, address: &str| Machine {
            pid,
            own: true,
            name: Some(name.into()),
            monitors: vec![MonitorAt::Address(address.into())],
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
