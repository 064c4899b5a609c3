//! The man page and the completions of the shells are made from the definition of the command line. They are kept in the
//! repository, for packages; `QOM_FUSE_REGENERATE=1 cargo test --test generated` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};

use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use harness::{quote, sh};

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Compares a file with what it should hold, or writes that.
#[track_caller]
fn check(name: &str, wanted: &[u8]) {
    let file = here(name);
    if std::env::var_os("QOM_FUSE_REGENERATE").is_some() {
        fs::write(&file, wanted).unwrap_or_else(|error| panic!("write {name}: {error}"));
    }
    let is = fs::read(&file).unwrap_or_default();
    assert!(
        is == wanted,
        "{name} is not what the command line's definition says: QOM_FUSE_REGENERATE=1 cargo test --test generated"
    );
}

#[test]
fn completions() {
    for (shell, name) in [
        (Shell::Bash, "completions/qom-fuse.bash"),
        (Shell::Fish, "completions/qom-fuse.fish"),
        (Shell::Zsh, "completions/_qom-fuse"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut qom_fuse::command(), "qom-fuse", &mut text);
        let text = String::from_utf8(text).expect("UTF-8");
        let text = with_machines(shell, &text);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        check(name, format!("{}\n", lines.join("\n").trim_end()).as_bytes());
        for option in ["socket", "foreground", "log-file", "verbose", "list", "help"] {
            assert!(text.contains(option), "{option} is not in {name}");
        }
    }
    let bash = quote(here("completions/qom-fuse.bash"));
    sh(&format!("bash -n {bash}")).ok();
    for (words, expected) in [
        ("qom-fuse --l", "--list --log-file"),
        ("qom-fuse --fore", "--foreground"),
    ] {
        let out = sh(&format!(
            "compopt() {{ :; }}; source {bash}
             COMP_WORDS=({words}); COMP_CWORD=1; COMP_LINE='{words}'; COMP_POINT=${{#COMP_LINE}}
             _qom__fuse qom-fuse \"${{COMP_WORDS[1]}}\" qom-fuse
             echo \"${{COMPREPLY[@]}}\""
        ));
        assert_eq!(out.ok().text(), expected);
    }
    // The other shells are asked where they are installed.
    for (shell, file) in [
        ("fish", "completions/qom-fuse.fish"),
        ("zsh", "completions/_qom-fuse"),
    ] {
        let file = quote(here(file));
        sh(&format!("! type -P {shell} > /dev/null || {shell} -n {file}")).ok();
    }
}

/// Adds the names of the machines that there are. Those that a shell would have to quote are left out.
fn with_machines(shell: Shell, text: &str) -> String {
    const NAMES: &str = "qom-fuse --list 2>/dev/null | \
                         awk 'NR > 1 && $2 ~ /^[[:alnum:]_.+][[:alnum:]_.+-]*$/ { print $2 }'";
    match shell {
        Shell::Bash => {
            let own = "_qom__fuse_machines() {
    _qom__fuse \"$@\"
    local name cur=\"${COMP_WORDS[COMP_CWORD]}\"
    if [[ ${cur} != -* && $3 != -o && $3 != --log-file ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- \"${cur}\")
        while read -r name; do
            [[ ${name} == \"${cur}\"* ]] && COMPREPLY+=(\"${name}\")
        done < <(NAMES)
    fi
}

complete -F _qom__fuse_machines -o filenames -o bashdefault -o default qom-fuse
";
            format!("{text}\n{}", own.replace("NAMES", NAMES))
        }
        Shell::Zsh => {
            let own = "(( $+functions[_qom-fuse_machines] )) ||
_qom-fuse_machines() {
    local machines; machines=(${(f)\"$(NAMES)\"})
    _alternative 'machines:machine:compadd -a machines' 'files:file:_files'
}

";
            let start = "if [ \"$funcstack[1]\"";
            text.replace(":SOCKET:_files", ":SOCKET:_qom-fuse_machines")
                .replace("to mount on:_files", "to mount on:_qom-fuse_machines")
                .replace(start, &format!("{}{start}", own.replace("NAMES", NAMES)))
        }
        _ => {
            let names = NAMES.replace('$', "\\$");
            format!(
                "{text}complete -c qom-fuse -a \"({names})\"\ncomplete -c qom-fuse -s s -l socket -r -F -a \"({names})\"\n"
            )
        }
    }
}

#[test]
fn man_page() {
    let page = page();
    check("docs/qom-fuse.1", &page);
    let file = quote(here("docs/qom-fuse.1"));
    let out = sh(&format!("groff -man -Tutf8 -ww -z {file}"));
    assert_eq!(out.ok().stderr, "", "groff complains");
    let out = sh(&format!("MANWIDTH=100 man --warnings -l {file} | col -b"));
    assert_eq!(out.ok().stderr, "", "man complains");
    let text = out.text();
    for part in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "MOUNT OPTIONS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(
            text.lines().any(|line| line == part),
            "no section {part}:\n{text}"
        );
    }
    for part in [
        "qom-fuse - Mount the QEMU Object Model",
        "--log-file",
        "entry_timeout=SECONDS",
        "no_readahead",
        "qom-fuse mnt -- qemu-system-x86_64",
        "QMP_SERVER",
        "qemu(1)",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// The whole page: what clap tells of the options, and what `--help` says below them, in the form of a man page.
fn page() -> Vec<u8> {
    let command = qom_fuse::command();
    let help = command
        .get_after_help()
        .expect("words after the options")
        .to_string();
    let man = Man::new(command)
        .manual("User Commands")
        .date(released())
        .source(concat!("qom-fuse ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    let written = "write to memory";
    page.extend(b".\\\" Made by QOM_FUSE_REGENERATE=1 cargo test --test generated\n");
    man.render_title(&mut page).expect(written);
    man.render_name_section(&mut page).expect(written);
    man.render_synopsis_section(&mut page).expect(written);

    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        roff.control("PP", []);
        roff.text([roman(*paragraph)]);
    }
    roff.to_writer(&mut page).expect(written);
    man.render_options_section(&mut page).expect(written);

    let mut roff = Roff::new();
    for part in help.split("\n\n").flat_map(sections) {
        part.render(&mut roff);
    }
    for (title, entries) in [("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)] {
        roff.control("SH", [title]);
        for (name, text) in entries {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*text)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut others: Vec<Inline> = Vec::new();
    for (name, section) in SEE_ALSO {
        if !others.is_empty() {
            others.push(roman(", "));
        }
        others.extend([bold(*name), roman(format!("({section})"))]);
    }
    roff.text(others);
    roff.to_writer(&mut page).expect(written);
    // A page that every troff can read is in ASCII.
    let page = String::from_utf8(page).expect("UTF-8").replace('…', "...");
    assert!(page.is_ascii(), "{page}");
    page.into_bytes()
}

/// The day of this version, from the list of changes.
fn released() -> String {
    let changes = fs::read_to_string(here("CHANGELOG.md")).expect("read CHANGELOG.md");
    let start = concat!("## ", env!("CARGO_PKG_VERSION"), " - ");
    let line = changes.lines().find_map(|line| line.strip_prefix(start));
    line.expect("this version in CHANGELOG.md").to_owned()
}

const DESCRIPTION: &[&str] = &[
    "QEMU keeps every device, bus, CPU, backend and setting of a running machine in one tree of objects. qom-fuse shows \
     that tree below MOUNTPOINT: objects are directories, properties are files, links between objects are symbolic \
     links. Reading a file asks QEMU for the value, writing one sets it.",
    "A file holds one value and a newline: strings as they are, true and false, decimal numbers, and structures and \
     lists as JSON on one line. A write takes the same, and fails with EINVAL for a value that QEMU does not accept, \
     EACCES for a property that cannot be set, and EBUSY for one that can no longer be set. ln -sfn TARGET LINK sets a \
     link; a link that leads nowhere reads unset:[NAME]. Types, descriptions, defaults and QEMU's words for the last \
     error are extended attributes (getfattr -d FILE).",
    "QEMU is reached over a QMP socket, which serves one client at a time, or is started by qom-fuse, which \
     then needs none. The command returns once the mount answers; the mount goes when QEMU does, or with \
     fusermount3 -u MOUNTPOINT.",
    "Properties can change a machine for good. Mount with -o ro where looking is enough.",
];

const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "QMP_SOCKET, QMP_SERVER",
        "The QMP socket, when none is named; the first one set counts.",
    ),
    (
        "RUST_LOG",
        "The level of the log (error, warn, info, debug, trace), in place of -v; also by module, as in qom_fuse::qmp=debug.",
    ),
    (
        "NOTIFY_SOCKET",
        "Where a service manager wants to hear that the mount answers: see sd_notify(3).",
    ),
];

const FILES: &[(&str, &str)] = &[
    (
        "/etc/fuse.conf",
        "Whether users other than root may give allow_other and allow_root (user_allow_other).",
    ),
    (
        "/etc/fstab",
        "May hold mounts of the type fuse.qom-fuse, with the QMP socket as the source.",
    ),
    (
        "/etc/default/qom-fuse-NAME",
        "SOCKET, MOUNTPOINT and OPTIONS of the service qom-fuse@NAME.",
    ),
];

const SEE_ALSO: &[(&str, u8)] = &[
    ("qemu", 1),
    ("qemu-qmp-ref", 7),
    ("fusermount3", 1),
    ("mount.fuse3", 8),
    ("fstab", 5),
    ("getfattr", 1),
    ("virt-qemu-qmp-proxy", 1),
];

/// A part of what `--help` says below the options.
#[derive(Debug)]
enum Part<'a> {
    Title(&'a str),
    /// Words to type, and what they do.
    Entry(&'a str, String),
    /// Lines to be shown as they are.
    Block(Vec<&'a str>),
    Text(String),
}

/// Takes apart a paragraph: `TITLE:` and indented lines below it, `TITLE: text`, or indented lines only.
fn sections(paragraph: &str) -> Vec<Part<'_>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut lines = paragraph.lines().peekable();
    let first = *lines.peek().expect("a line");
    if let Some((title, text)) = first.split_once(": ").filter(|_| !first.starts_with(' ')) {
        let rest = lines.skip(1).map(|line| format!(" {line}")).collect::<String>();
        return vec![Part::Title(title), Part::Text(format!("{text}{rest}"))];
    }
    if let Some(title) = first.strip_suffix(':') {
        parts.push(Part::Title(title));
        lines.next();
    }
    let examples = !parts
        .iter()
        .any(|part| matches!(part, Part::Title("Mount options")));
    if examples {
        parts.push(Part::Block(
            lines.map(|line| line.trim_start_matches("  ")).collect(),
        ));
        return parts;
    }
    for line in lines {
        let line = line.strip_prefix("  ").expect("an indented line");
        match (line.strip_prefix("      "), parts.last_mut()) {
            (Some(more), Some(Part::Entry(_, text))) => {
                *text = format!("{text} {}", more.trim_start());
            }
            _ => {
                // The names take up to 25 columns; without a column of text it is a remark on more names.
                let (names, text) = line.split_at_checked(26).unwrap_or((line, ""));
                if names.ends_with(' ') {
                    parts.push(Part::Entry(names.trim_end(), text.to_owned()));
                } else {
                    parts.push(Part::Text(line.to_owned()));
                }
            }
        }
    }
    parts
}

impl Part<'_> {
    fn render(&self, roff: &mut Roff) {
        match self {
            Part::Title(title) => {
                roff.control("SH", [title.to_uppercase().as_str()]);
            }
            Part::Entry(names, text) => {
                roff.control("TP", []);
                let mut inline: Vec<Inline> = Vec::new();
                for name in names.split(", ") {
                    if !inline.is_empty() {
                        inline.push(roman(", "));
                    }
                    match name.split_once('=') {
                        Some((name, value)) => {
                            inline.extend([bold(name), roman("="), italic(value)]);
                        }
                        None => inline.push(bold(name)),
                    }
                }
                roff.text(inline);
                roff.text([roman(text)]);
            }
            Part::Block(lines) => {
                roff.control("PP", []);
                roff.control("nf", []);
                for line in lines {
                    roff.text([roman(*line)]);
                }
                roff.control("fi", []);
            }
            Part::Text(text) => {
                roff.control("PP", []);
                roff.text([roman(text)]);
            }
        }
    }
}
