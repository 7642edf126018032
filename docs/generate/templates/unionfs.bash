# Completion of unionfs(8) for bash. Written by "cargo run -p docs-generate" from
# docs/generate/templates/unionfs.bash and the program's option table: change those.

# What stands after an option's name: sets kind, and choices.
_unionfs_kind() {
    choices=
    case $1 in
@KINDS@
        *) kind=free ;;
    esac
}

# Directories (-d) or files (-f) that begin with $2. Names that would need quotes or backslashes,
# for the shell or for the options, are left out.
_unionfs_paths() {
    local path
    compgen "$1" -- "$2" | while IFS= read -r path; do
        [[ $path != *[!A-Za-z0-9_./@%+=~-]* ]] || continue
        if [[ -d $path ]]; then path+=/; fi
        printf '%s\n' "$path"
    done
}

# What may stand in the place of the value $2 of the option $1.
_unionfs_value() {
    local kind choices list part
    _unionfs_kind "$1"
    list=
    part=$2
    case $kind in
        directories | branches)
            part=${2##*:}
            list=${2%"$part"}
            ;;
    esac
    case $kind in
        choice) compgen -W "$choices" -- "$part" ;;
        file) _unionfs_paths -f "$part" ;;
        directory | directories) _unionfs_paths -d "$part" ;;
        branches)
            if [[ $part == *=* ]]; then
                compgen -P "${part%=*}=" -W 'rw ro ro+wh rr rr+wh' -- "${part##*=}"
            else
                _unionfs_paths -d "$part"
            fi
            ;;
    esac | while IFS= read -r part; do printf '%s\n' "$list$part"; done
}

# What may stand in the place of the text $1 of -o: only its last option counts.
_unionfs_options() {
    local names='@NAMES@'
    local field=${1##*,} name separator
    local before=${1%"$field"}
    case $field in
        @COLONS@) separator=: ;;
        *=*) separator='=' ;;
        *)
            compgen -P "$before" -W "$names" -- "$field"
            return
            ;;
    esac
    name=${field%%"$separator"*}
    before+=$name$separator
    _unionfs_value "$name" "${field#*"$separator"}" |
        while IFS= read -r field; do printf '%s\n' "$before$field"; done
}

# The words up to the cursor: readline has parted them at = and : as well (COMP_WORDBREAKS).
_unionfs_words() {
    local rest=${COMP_LINE:0:COMP_POINT} word blanks
    words=()
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        blanks=${rest%%[![:blank:]]*}
        rest=${rest#"$blanks"}
        # The cursor may stand within the last one.
        [[ $rest == "$word"* ]] || word=$rest
        rest=${rest#"$word"}
        if [[ -n $blanks || ${#words[@]} -eq 0 ]]; then
            words+=("$word")
        else
            words[-1]+=$word
        fi
    done
}

# A file or directory as an operand.
_unionfs_operand() {
    compopt -o filenames 2>/dev/null
    local IFS=$'\n'
    COMPREPLY+=($(compgen "$1" -- "$2"))
}

# One of the words $1.
_unionfs_word() {
    COMPREPLY+=($(compgen -W "$1" -- "$cur"))
}

# The text of -o, which stands in $cur after $1.
_unionfs_text() {
    local text=${cur#"$1"} flag=$1 typed= line
    compopt -o nospace 2>/dev/null
    # Readline replaces what stands after the opening quote, or after the last of its word breaks.
    case $text in
        [\"\']*)
            text=${text:1}
            flag=
            ;;
        *)
            if [[ -n $breaks ]]; then
                typed=$flag$text
                typed=${typed%"${typed##*[$breaks]}"}
            fi
            ;;
    esac
    while IFS= read -r line; do
        line=$flag$line
        COMPREPLY+=("${line#"$typed"}")
    done < <(_unionfs_options "$text")
}

_unionfs() {
    local words cur prev verb= flags='@SHORT@ @LONG@'
    # Which of = and : part words.
    local breaks=${COMP_WORDBREAKS//[!=:]/}
    COMPREPLY=()
    _unionfs_words
    cur=${words[-1]}
    prev=
    if ((${#words[@]} > 1)); then prev=${words[-2]}; fi
    case $prev in
@PATHS@
    esac
    if ((${#words[@]} > 2)); then verb=${words[1]}; fi
    case $verb in
@OF_VERBS@
    esac
    # The word before this one may be the verb itself.
    if [[ $cur != -* ]]; then
        case "$verb $prev" in
@VALUES_OF_VERBS@
        esac
    fi
    case $cur in
        -o*) _unionfs_text -o ;;
        -*) _unionfs_word "$flags" ;;
        *)
            _unionfs_operand -d "$cur"
            if ((${#words[@]} == 2)); then _unionfs_word '@VERBS@'; fi
            ;;
    esac
} && complete -F _unionfs unionfs
