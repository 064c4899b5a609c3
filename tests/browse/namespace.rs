//! A reader in another PID namespace than the daemon's, as beside a container: FUSE gives 0 for its process.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::*;
use serde_json::Value;

/// Reads everything by `grep -r`, which `reader` starts. Gives how often each command was sent, and what was read.
fn walk(qemu: &Qemu, reader: &str) -> (BTreeMap<String, usize>, Out) {
    let relay = Relay::start(qemu.dir(), &qemu.socket());
    let session = Session::new();
    let who = if is_root() { "" } else { "--map-root-user" };
    // The outer namespace makes both end with the test.
    let script = format!(
        "unshare --pid --fork --kill-child qom-fuse -f -o entry_timeout=60 {} mnt &
         for i in {{1..200}}; do [ -d mnt/machine ] && break; sleep 0.05; done
         {reader} grep -rs . mnt
         umount mnt
         wait",
        quote(relay.socket())
    );
    let out = session.run(&format!(
        "exec unshare {who} --mount --pid --fork --kill-child --mount-proc bash -c {}",
        quote(script)
    ));
    session.wait_ended(Duration::from_secs(15));
    let mut asked = BTreeMap::<_, usize>::new();
    for request in relay.requests() {
        let request: Value = serde_json::from_str(&request).expect("a request in JSON");
        let command = request["execute"].as_str().expect("a command").to_owned();
        *asked.entry(command).or_default() += 1;
    }
    (asked, out)
}

#[test]
fn nothing_is_asked_ahead_of_a_process_without_a_number() {
    let qemu = Qemu::start(Which::New, "none", &["-object", "iothread,id=t"]);
    let objects = qemu.truth().walk();
    let count = |of: fn(&Object) -> usize| objects.iter().map(of).sum::<usize>();
    let values = count(|object| {
        let plain = object.props.iter();
        plain.filter(|prop| prop.is_value()).count()
    });

    let (asked, unseen) = walk(&qemu, "");
    let (lists, gets) = (asked.get("qom-list"), asked.get("qom-get"));
    assert_eq!((lists, gets), (Some(&objects.len()), Some(&values)), "{asked:?}");
    assert_eq!(asked.get("qom-list-get"), None, "{asked:?}");

    // In the daemon's own namespace the same reader is foreseen, and reads the same.
    // Three times, should the machine hold it up for longer than a walk may pause.
    let inside = "nsenter --target $(pgrep -x qom-fuse | head -n 1) --pid --";
    let (_, seen) = (0..3)
        .map(|_| walk(&qemu, inside))
        .find(|(asked, _)| asked.contains_key("qom-list-get"))
        .expect("a walk that is foreseen");
    assert!(
        !unseen.text().is_empty() && unseen.stderr == seen.stderr,
        "{unseen}{seen}"
    );
    assert_eq!(unseen.text(), seen.text());
}
