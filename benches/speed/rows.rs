//! What is measured on each machine, and what it must reach.

use crate::machine::{Count, Machine, Requests};
use crate::measure::{cold_mount, drop_inodes, find, grep, median, read_again, resident};
use crate::results::{Limit, Row, Table, Times};
use harness::{Relay, Which};

/// How often the one property is read.
const TIMES: usize = 1000;

pub struct Effort {
    pub runs: u32,
}

/// The requests of each kind of work, ours and the minimal client's.
struct Counts {
    find: (Count, Count),
    again: Count,
    grep: (Count, Count),
    read: (Count, Count),
}

/// Counts in runs of their own, which are not timed: the relay in between costs time.
fn count(machine: &Machine, reading: &Requests) -> Counts {
    let relay = Relay::start(machine.qemu.dir(), &machine.qemu.socket());
    let counted = |work: &mut dyn FnMut()| {
        relay.reset();
        work();
        Count::of(&relay)
    };
    let mount = cold_mount(relay.socket());
    let found = counted(&mut || _ = find(&mount));
    let again = counted(&mut || _ = find(&mount));
    drop(mount);
    let mount = cold_mount(relay.socket());
    let grepped = counted(&mut || _ = grep(&mount));
    let read = counted(&mut || _ = read_again(&mount, &Machine::property_file(), TIMES));
    Counts {
        find: (found, machine.count_minimal(&machine.lists())),
        again,
        grep: (grepped, machine.count_minimal(reading)),
        read: (read, machine.count_minimal(&machine.gets(TIMES))),
    }
}

/// Everything on a machine as it comes.
pub fn small(which: Which, effort: &Effort) -> Table {
    let machine = Machine::start(which, &[]);
    let socket = machine.qemu.socket();
    let lists = machine.lists();
    let (reading, per_object) = match which {
        Which::Old => (machine.lists_and_gets(), false),
        Which::New => (machine.list_gets(), true),
    };
    eprintln!("{}: counting requests", machine.name);
    let counts = count(&machine, &reading);

    eprintln!("{}: find", machine.name);
    let mut again = Times::default();
    let finding = Times::alternate(
        effort.runs,
        || {
            let mount = cold_mount(&socket);
            let (time, lines) = find(&mount);
            let (second, same) = find(&mount);
            assert!(
                lines == same && lines > machine.objects(),
                "find printed {lines}, then {same} lines"
            );
            again.ours.push(second.as_secs_f64());
            time
        },
        || machine.time_minimal(&lists),
    );
    eprintln!("{}: grep -r", machine.name);
    let grepping = Times::alternate(
        effort.runs,
        || {
            let (time, lines) = grep(&cold_mount(&socket));
            assert!(lines > machine.values() / 2, "grep printed only {lines} lines");
            time
        },
        || machine.time_minimal(&reading),
    );
    eprintln!("{}: one property", machine.name);
    let mount = cold_mount(&socket);
    let one = machine.gets(TIMES);
    let opening = Times::alternate(
        effort.runs,
        || read_again(&mount, &Machine::property_file(), TIMES),
        || machine.time_minimal(&one),
    );

    let rows = vec![
        Row {
            work: "find MNT, cold".into(),
            limits: vec![
                finding.within(1.25),
                counts.find.0.at_most(machine.objects(), "one request per object"),
            ],
            times: finding,
            ours: counts.find.0,
            minimal: Some(counts.find.1),
        },
        Row {
            work: "find MNT again within 1 s".into(),
            times: again,
            ours: counts.again,
            minimal: None,
            limits: vec![counts.again.at_most(0, "no request")],
        },
        grep_row(&machine, grepping, counts.grep, per_object),
        Row {
            work: format!("open + read + close of one property, {TIMES} times"),
            limits: vec![opening.within(1.3)],
            times: opening,
            ours: counts.read.0,
            minimal: Some(counts.read.1),
        },
    ];
    table(&machine, "-M q35", rows, Vec::new())
}

/// Walks of the largest machine.
pub fn large(effort: &Effort) -> Table {
    let machine = Machine::start(Which::New, &["-smp", "200"]);
    let socket = machine.qemu.socket();
    let (lists, reading) = (machine.lists(), machine.list_gets());
    eprintln!("{} with 200 CPUs: counting requests", machine.name);
    let relay = Relay::start(machine.qemu.dir(), &socket);
    let mount = cold_mount(relay.socket());
    relay.reset();
    find(&mount);
    let found = (Count::of(&relay), machine.count_minimal(&lists));
    drop(mount);
    let mount = cold_mount(relay.socket());
    relay.reset();
    grep(&mount);
    let grepped = (Count::of(&relay), machine.count_minimal(&reading));
    drop((mount, relay));

    let (mut start, mut walked, mut after) = (0.0_f64, 0.0_f64, Some(0.0_f64));
    let (mut finding, mut grepping) = (Times::default(), Times::default());
    for run in 1..=effort.runs {
        eprintln!("{} with 200 CPUs: run {run} of {}", machine.name, effort.runs);
        let mount = cold_mount(&socket);
        finding.ours.push(find(&mount).0.as_secs_f64());
        drop(mount);
        finding.minimal.push(machine.time_minimal(&lists).as_secs_f64());
        let mount = cold_mount(&socket);
        start = start.max(resident(&mount));
        grepping.ours.push(grep(&mount).0.as_secs_f64());
        grepping
            .minimal
            .push(machine.time_minimal(&reading).as_secs_f64());
        find(&mount);
        walked = walked.max(resident(&mount));
        let forgot = drop_inodes().ok();
        after = after.zip(forgot).map(|(most, ())| most.max(resident(&mount)));
    }
    let per_property = median(&grepping.ours) / machine.properties() as f64 * 1e6;
    let forgotten = after.map_or("not measured, as this was not run by root".into(), |after| {
        format!("{after:.1} MiB")
    });
    let notes = vec![
        format!(
            "`grep -r` took {per_property:.1} µs per property: what the kernel and the mount add to each weighs \
             most here, as QEMU tells hundreds in one reply. A walk that takes longer than `entry_timeout` lists a \
             folder again when it comes back to it."
        ),
        format!(
            "Resident memory of the daemon, the most of all runs: {start:.1} MiB at the start, {walked:.1} MiB after \
             both walks of one mount; once the kernel has forgotten the inodes (`echo 2 > \
             /proc/sys/vm/drop_caches`): {forgotten}."
        ),
    ];
    let limit = |text: &str, met| Limit {
        text: text.into(),
        met,
        ratio: None,
    };
    let mut reading_limits = vec![
        limit("≤ 100 µs per property", per_property <= 100.0),
        limit("≤ 64 MiB resident after both", walked <= 64.0),
    ];
    reading_limits.extend(after.map(|after| limit("≤ 12 MiB once forgotten", after <= 12.0)));
    let rows = vec![
        Row {
            work: "find MNT, cold".into(),
            limits: vec![
                finding.within(1.25),
                // A walk that takes longer than entry_timeout lists a few again.
                found
                    .0
                    .at_most(machine.objects() * 101 / 100, "≤ 1.01 requests per object"),
            ],
            times: finding,
            ours: found.0,
            minimal: Some(found.1),
        },
        Row {
            work: "grep -r . MNT".into(),
            limits: reading_limits,
            times: grepping,
            ours: grepped.0,
            minimal: Some(grepped.1),
        },
    ];
    table(&machine, "-M q35 -smp 200", rows, notes)
}

fn grep_row(machine: &Machine, times: Times, (ours, minimal): (Count, Count), per_object: bool) -> Row {
    let limits = if per_object {
        let most = machine.objects() * 5 / 4;
        vec![
            times.within(2.0),
            ours.at_most(most, "≤ 1.25 requests per object"),
        ]
    } else {
        let most = minimal.requests * 102 / 100;
        vec![times.within(1.25), ours.at_most(most, "≤ 1.02 × the requests")]
    };
    Row {
        work: "grep -r . MNT".into(),
        times,
        ours,
        minimal: Some(minimal),
        limits,
    }
}

fn table(machine: &Machine, arguments: &str, rows: Vec<Row>, notes: Vec<String>) -> Table {
    let cpus = arguments
        .split_once("-smp ")
        .map(|(_, cpus)| format!(", {cpus} CPUs"));
    Table {
        machine: machine.name.clone(),
        short: machine.name.clone() + &cpus.unwrap_or_default(),
        what: format!(
            "`{arguments}`: {} objects, {} properties, of them {} plain ones",
            machine.objects(),
            machine.properties(),
            machine.values()
        ),
        rows,
        notes,
    }
}
