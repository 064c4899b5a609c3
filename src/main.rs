//! `qom-fuse`: see the library for what it does.

fn main() -> std::process::ExitCode {
    qom_fuse::main()
}
