_qom__fuse() {
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="qom__fuse"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        qom__fuse)
            opts="-l -f -v -o -s -h -V --list --foreground --verbose --socket --log-file --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                -o)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --socket)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                -s)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log-file)
                    local oldifs
                    if [ -n "${IFS+x}" ]; then
                        oldifs="$IFS"
                    fi
                    IFS=$'\n'
                    COMPREPLY=($(compgen -f "${cur}"))
                    if [ -n "${oldifs+x}" ]; then
                        IFS="$oldifs"
                    fi
                    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
                        compopt -o filenames
                    fi
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _qom__fuse -o nosort -o bashdefault -o default qom-fuse
else
    complete -F _qom__fuse -o bashdefault -o default qom-fuse
fi

_qom__fuse_machines() {
    _qom__fuse "$@"
    local name cur="${COMP_WORDS[COMP_CWORD]}"
    if [[ ${cur} != -* && $3 != -o && $3 != --log-file ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "${cur}")
        while read -r name; do
            [[ ${name} == "${cur}"* ]] && COMPREPLY+=("${name}")
        done < <(qom-fuse --list 2>/dev/null | awk 'NR > 1 && $2 ~ /^[[:alnum:]_.+][[:alnum:]_.+-]*$/ { print $2 }')
    fi
}

complete -F _qom__fuse_machines -o filenames -o bashdefault -o default qom-fuse
