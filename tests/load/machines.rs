//! Every machine type that QEMU has, whole: each name, value and link in the mount is what QEMU itself tells.

use harness::mirror::{Copy, Told};
use harness::*;

/// The names of `-M help`, aliases included.
#[track_caller]
fn machine_types(which: Which) -> Vec<String> {
    let program = sh::quote(which.binary());
    let out = sh(&format!("{program} -M help"));
    let lines = out.ok().lines().into_iter().skip(1);
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// Compares each machine type that `part` takes. One that QEMU itself cannot start here is told, with QEMU's reason.
#[track_caller]
fn compare(which: Which, floor: usize, part: fn(&str) -> bool) {
    let types = machine_types(which);
    let types: Vec<_> = types.iter().filter(|name| part(name)).collect();
    let (mut started, mut values) = (0, 0);
    let mut differences = Vec::new();
    for machine in &types {
        let qemu = match Qemu::try_start(which, machine, &[]) {
            Ok(qemu) => qemu,
            Err(why) => {
                let reason = why.lines().nth(1).expect("QEMU says why it does not start");
                assert!(reason.starts_with("qemu-system-x86_64: "), "{machine}: {why}");
                println!("{which:?} {machine}: QEMU does not start it: {reason}");
                continue;
            }
        };
        let mount = Mount::start(&qemu.socket(), &[]);
        let told = Told::ask(qemu.truth());
        let compared = Copy::take(mount.path()).compare(&told, qemu.truth());
        differences.extend(
            compared
                .differences
                .iter()
                .map(|difference| format!("{machine}: {difference}")),
        );
        started += 1;
        values += compared.values;
    }
    println!(
        "{which:?}: {started} of {} machine types, {values} values",
        types.len()
    );
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(
        started >= floor,
        "only {started} of {} machine types started",
        types.len()
    );
    assert!(values > 500 * started, "only {values} values");
}

// Each QEMU's in two halves, as the tests of one file run side by side.

#[test]
fn q35_machines_of_an_old_qemu() {
    compare(Which::Old, 20, |name| name.contains("q35"));
}

#[test]
fn other_machines_of_an_old_qemu() {
    compare(Which::Old, 20, |name| !name.contains("q35"));
}

#[test]
fn q35_machines_of_a_new_qemu() {
    compare(Which::New, 19, |name| name.contains("q35"));
}

#[test]
fn other_machines_of_a_new_qemu() {
    compare(Which::New, 20, |name| !name.contains("q35"));
}
