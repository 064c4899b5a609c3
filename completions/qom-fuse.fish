complete -c qom-fuse -s o -d 'Mount options, separated by commas (see below)' -r
complete -c qom-fuse -s s -l socket -d 'The machine: its name, id or process id as --list shows them; libvirt:DOMAIN; or its QMP socket: /path, unix:/path, host:port, tcp:host:port, [v6]:port or fd:N; what was given to QEMU\'s -qmp works too [env: QMP_SOCKET, QMP_SERVER]' -r -F
complete -c qom-fuse -l log-file -d 'Append the log to this file' -r -F
complete -c qom-fuse -s l -l list -d 'Print the machines that you may see, with their QMP sockets, and exit'
complete -c qom-fuse -s f -l foreground -d 'Stay in the foreground, with the log on stderr'
complete -c qom-fuse -s v -l verbose -d 'Log more: -v what happens, -vv each QMP request with its time [env: RUST_LOG]'
complete -c qom-fuse -s h -l help -d 'Print help'
complete -c qom-fuse -s V -l version -d 'Print version'
complete -c qom-fuse -a "(qom-fuse --list 2>/dev/null | awk 'NR > 1 && \$2 ~ /^[[:alnum:]_.+][[:alnum:]_.+-]*\$/ { print \$2 }')"
complete -c qom-fuse -s s -l socket -r -F -a "(qom-fuse --list 2>/dev/null | awk 'NR > 1 && \$2 ~ /^[[:alnum:]_.+][[:alnum:]_.+-]*\$/ { print \$2 }')"
