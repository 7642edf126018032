# Completion of unionfs(8) for bash. Written by "cargo run -p docs-generate" from
# docs/generate/templates/unionfs.bash and the program's option table: change those.

# What stands after an option's name: sets kind, and choices.
_unionfs_kind() {
    choices=
    case $1 in
        lowerdir) kind=directories ;;
        lowerdir+ | upperdir | workdir | del | chroot | datadir+) kind=directory ;;
        plink_flush) kind=choice choices='umount off' ;;
        br | dirs | add | ins | append | prepend | mod) kind=branches ;;
        whiteout) kind=choice choices='aufs overlay' ;;
        diropq) kind=choice choices='a w' ;;
        rename_dir) kind=choice choices='copy redirect exdev' ;;
        fsync | sync) kind=choice choices='0 1 auto strict volatile' ;;
        open) kind=choice choices='auto passthrough none cached' ;;
        writeback | noxattrs | threaded | fast_ino | fast_ino_check) kind=choice choices='0 1' ;;
        log) kind=choice choices='error warn info debug trace' ;;
        log_file | debug_file) kind=file ;;
        xattr_permissions) kind=choice choices='0 1 2' ;;
        redirect_dir) kind=choice choices='on off follow nofollow' ;;
        index | nfs_export | metacopy) kind=choice choices='on off' ;;
        uuid) kind=choice choices='on off null auto' ;;
        verity) kind=choice choices='off on require' ;;
        xino) kind=choice choices='off auto on' ;;
        udba) kind=choice choices='none reval notify fsnotify' ;;
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
    local names='lowerdir= lowerdir+= upperdir= workdir= plink_flush= supervise nosupervise br= dirs= add= ins= append= prepend= del= mod= chroot= whiteout= diropq= rename_dir= volatile fsync= open= writeback= threads= log= log_file= fsname= uidmapping= gidmapping= squash_to_root squash_to_uid= squash_to_gid= xattr_permissions= noacl noxattrs static_nlink ino32_t userxattr redirect_dir= metacopy= verity= override_creds cow hide_meta_files hide_meta_dir statfs_omit_ro debug_file= plink noplink xino= udba= create= create_policy= cpup= copyup= copyup_policy= dirperm1 noshwh sum wsum nosum droplvl= ephemeral allow_other noallow_other allow_root default_permissions auto_unmount nonempty subtype= max_read= max_write direct_io use_ino readdir_ino attr_timeout= entry_timeout= negative_timeout= timeout= umask= fmask= dmask= uid= gid= debug context= fscontext= defcontext= rootcontext= max_threads= rw ro nosuid suid nodev dev noexec exec nosymfollow symfollow noatime atime relatime norelatime nostrictatime strictatime nodiratime diratime lazytime nolazytime sync async dirsync remount'
    local field=${1##*,} name separator
    local before=${1%"$field"}
    case $field in
        br:* | dirs:* | add:* | ins:* | append:* | prepend:* | del:* | mod:*) separator=: ;;
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
    local words cur prev verb= flags='-o -f -d -r -s -N -h -V --sloppy --check --help --version'
    # Which of = and : part words.
    local breaks=${COMP_WORDBREAKS//[!=:]/}
    COMPREPLY=()
    _unionfs_words
    cur=${words[-1]}
    prev=
    if ((${#words[@]} > 1)); then prev=${words[-2]}; fi
    case $prev in
        -o | -[!-]*o) _unionfs_text ''; return ;;
        -N) _unionfs_operand -f "$cur"; return ;;
    esac
    if ((${#words[@]} > 2)); then verb=${words[1]}; fi
    case $verb in
        mount) flags='-o -f -d -r -s -N -h --sloppy --check --help' ;;
        umount) flags='-h --help' ;;
        upgrade) flags='-h --help' ;;
        ctl) flags='-h --json --prometheus --slower --below --every --count --help' ;;
        plink) flags='-o -h --json --help' ;;
        diff) flags='-o -h --json --tar --oci --help' ;;
        apply) flags='-h --layer --help' ;;
        check) flags='-o -h --repair --json --help' ;;
        convert) flags='-o -h --to --help' ;;
        commit) flags='-h --below --json --help' ;;
        run) flags='-h --lower --upper --keep --discard --commit --net --json --help' ;;
        demo) flags='-h --help' ;;
    esac
    # The word before this one may be the verb itself.
    if [[ $cur != -* ]]; then
        case "$verb $prev" in
        'plink plink') _unionfs_word 'list flush'; return ;;
        'diff --tar') _unionfs_operand -f "$cur"; return ;;
        'diff --oci') _unionfs_operand -f "$cur"; return ;;
        'apply apply') _unionfs_operand -f "$cur"; return ;;
        'convert --to') _unionfs_word 'aufs overlay fuse-overlayfs unionfs-fuse unionfs-fuse-1.0'; return ;;
        esac
    fi
    case $cur in
        -o*) _unionfs_text -o ;;
        -*) _unionfs_word "$flags" ;;
        *)
            _unionfs_operand -d "$cur"
            if ((${#words[@]} == 2)); then _unionfs_word 'mount umount upgrade ctl plink diff apply check convert commit run demo'; fi
            ;;
    esac
} && complete -F _unionfs unionfs
