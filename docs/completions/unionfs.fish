# Completion of unionfs(8) for fish. Written by "cargo run -p docs-generate" from
# docs/generate/templates/unionfs.fish and the program's option table: change those.

# Directories that begin with $argv[2], each after $argv[1]. Names that the options would have to
# escape are left out.
function __unionfs_directories
    for path in (__fish_complete_directories $argv[2] '' | string replace -r '\t.*' '')
        string match -qr '[:,\\\\"]' -- $path; or printf '%s%s\tDirectory\n' $argv[1] $path
    end
end

# The same for branches, which may have a permission after a =.
function __unionfs_branches
    if string match -qr '[:=][^,]*=$' -- $argv[1]
        printf '%s\n' $argv[1]{rw,ro,ro+wh,rr,rr+wh}
    else
        __unionfs_directories $argv
    end
end

# The text of -o: only its last option counts.
function __unionfs_options
    set -l text (commandline -ct | string replace -r '^-[a-z]*o' '')
    set -l field (string replace -r '^.*,' '' -- $text)
    set -l before (string replace -r '[^,]*$' '' -- $text)
    set -l part (string replace -r '^.*[=:]' '' -- $field)
    set -l upto $before(string replace -r '[^=:]*$' '' -- $field)
    switch $field
        case 'lowerdir=*'
            __unionfs_directories $upto $part
        case 'lowerdir+=*' 'upperdir=*' 'workdir=*' 'del=*' 'del:*' 'chroot=*' 'datadir+=*'
            __unionfs_directories $upto $part
        case 'plink_flush=*'
            printf '%s\n' $upto{umount,off}
        case 'br=*' 'br:*' 'dirs=*' 'dirs:*' 'add=*' 'add:*' 'ins=*' 'ins:*' 'append=*' 'append:*' 'prepend=*' 'prepend:*' 'mod=*' 'mod:*'
            __unionfs_branches $upto $part
        case 'whiteout=*'
            printf '%s\n' $upto{aufs,overlay}
        case 'diropq=*'
            printf '%s\n' $upto{a,w}
        case 'rename_dir=*'
            printf '%s\n' $upto{copy,redirect,exdev}
        case 'fsync=*' 'sync=*'
            printf '%s\n' $upto{0,1,auto,strict,volatile}
        case 'open=*'
            printf '%s\n' $upto{auto,passthrough,none,cached}
        case 'writeback=*' 'noxattrs=*' 'threaded=*' 'fast_ino=*' 'fast_ino_check=*'
            printf '%s\n' $upto{0,1}
        case 'log=*'
            printf '%s\n' $upto{error,warn,info,debug,trace}
        case 'log_file=*' 'debug_file=*'
            printf '%s\n' $upto(complete -C "'' $part")
        case 'xattr_permissions=*'
            printf '%s\n' $upto{0,1,2}
        case 'redirect_dir=*'
            printf '%s\n' $upto{on,off,follow,nofollow}
        case 'index=*' 'nfs_export=*' 'metacopy=*'
            printf '%s\n' $upto{on,off}
        case 'uuid=*'
            printf '%s\n' $upto{on,off,null,auto}
        case 'verity=*'
            printf '%s\n' $upto{off,on,require}
        case 'xino=*'
            printf '%s\n' $upto{off,auto,on}
        case 'udba=*'
            printf '%s\n' $upto{none,reval,notify,fsnotify}
        case '*=*' 'br:*' 'dirs:*' 'add:*' 'ins:*' 'append:*' 'prepend:*' 'del:*' 'mod:*'
        case '*'
            set -l names \
                lowerdir= 'The read-only layers, the first on top' \
                lowerdir+= 'One more read-only layer, below those named so far' \
                upperdir= 'The directory that takes all changes' \
                workdir= 'Where temporary objects are made, on the filesystem of the upper' \
                plink_flush= 'At a clean unmount every name of a linked file gets its place in the upper, so that the upper stands alone (unionfs plink flush at that moment)' \
                supervise 'A second process keeps the mount while its daemon is replaced' \
                nosupervise 'Nobody does' \
                br= 'All layers as branches, top first, also written br:DIR' \
                dirs= 'All layers as branches, top first, also written br:DIR' \
                add= 'Puts branches at a place of the list that br= gave' \
                ins= 'Puts branches at a place of the list that br= gave' \
                append= 'Puts branches below those named so far' \
                prepend= 'Puts branches above those named so far' \
                del= 'Takes a branch out of the list' \
                mod= 'Gives a branch of the list another permission' \
                chroot= 'All layers are named from this directory, as if it were /' \
                whiteout= 'How deletions are written to the upper' \
                diropq= 'a' \
                rename_dir= 'How a directory of which a lower has a part is renamed' \
                volatile 'fsync and the flush of a copy-up are left out' \
                fsync= '0 or volatile' \
                open= 'How data travel' \
                writeback= '0' \
                threads= 'How many threads take requests at most' \
                log= 'What is logged, or a list TARGET=LEVEL,' \
                log_file= 'Where the log goes, instead of stderr (foreground) or syslog (background)' \
                fsname= 'The device name shown in the mount table' \
                uidmapping= 'Ids C to C+N-1 of the layers show as H to H+N-1, and new objects are stored the other way round' \
                gidmapping= 'Ids C to C+N-1 of the layers show as H to H+N-1, and new objects are stored the other way round' \
                squash_to_root 'Everything shows as root\'s' \
                squash_to_uid= 'Everything shows as this user\'s, this group\'s' \
                squash_to_gid= 'Everything shows as this user\'s, this group\'s' \
                xattr_permissions= 'Owners and modes are kept in attributes of the upper' \
                noacl 'POSIX ACLs are neither kept nor obeyed' \
                noxattrs 'Extended attributes are neither shown nor kept' \
                static_nlink 'Directories show a link count of 1' \
                ino32_t 'Only the lower 32 bits of inode numbers are shown' \
                userxattr 'Marks in user.overlay' \
                redirect_dir= 'on' \
                metacopy= 'on' \
                verity= 'off is the default' \
                override_creds 'The daemon reads its layers with its own rights' \
                cow 'Changed files are copied to the upper' \
                hide_meta_files 'Whiteouts and the like do not show' \
                hide_meta_dir 'Whiteouts and the like do not show' \
                statfs_omit_ro 'df leaves out the layers that are only read' \
                debug_file= 'log_file=' \
                plink 'All names of one lower file stay one file when it is changed (the default)' \
                noplink 'Names of one lower file part when one of them is copied up, and .wh..wh.plnk is not written nor followed' \
                xino= 'Inode numbers are stable and unique without a table, always' \
                udba= 'Changes that others make in the layers' \
                create= 'Which writable branch takes an object' \
                create_policy= 'Which writable branch takes an object' \
                cpup= 'Which writable branch takes an object' \
                copyup= 'Which writable branch takes an object' \
                copyup_policy= 'Which writable branch takes an object' \
                dirperm1 'A directory\'s permissions are those of its topmost layer' \
                noshwh 'Whiteouts do not show' \
                sum 'df shows the sum of the filesystems of all layers' \
                wsum 'df shows the upper\'s' \
                nosum 'df shows the upper\'s' \
                droplvl= 'mount.aufs\'s shorthand' \
                ephemeral 'mount.aufs\'s shorthand for noatime and options without effect here' \
                allow_other 'All users may enter the mount' \
                noallow_other 'Only the mounting user may enter the mount' \
                allow_root 'The mounting user and root may enter it' \
                default_permissions 'The kernel checks permissions' \
                auto_unmount 'The mount goes away when its daemon dies, however it dies' \
                nonempty 'The mountpoint may hold files' \
                subtype= 'The type shown is fuse.NAME instead of fuse.unionfs' \
                max_read= 'Largest read request, 4096 to 1048576' \
                max_write 'Largest write request, 4096 to 1048576' \
                direct_io 'Reads and writes go past the page cache' \
                use_ino 'Inode numbers are the union\'s own, in stat and in listings' \
                readdir_ino 'Inode numbers are the union\'s own, in stat and in listings' \
                attr_timeout= 'How long the kernel trusts attributes' \
                entry_timeout= 'The same for names' \
                negative_timeout= 'The same for names that are not there' \
                timeout= 'All three timeouts at once' \
                umask= 'Every object shows all permission bits but these' \
                fmask= 'The same for all that are not directories' \
                dmask= 'The same for directories' \
                uid= 'Everything shows as this user\'s' \
                gid= 'Everything shows as this group\'s' \
                debug 'Log everything' \
                context= 'SELinux labels, given to the kernel where SELinux runs' \
                fscontext= 'SELinux labels, given to the kernel where SELinux runs' \
                defcontext= 'SELinux labels, given to the kernel where SELinux runs' \
                rootcontext= 'SELinux labels, given to the kernel where SELinux runs' \
                max_threads= 'threads=, at most 64' \
                rw 'Changes are taken, if there is an upper' \
                ro 'No changes are taken' \
                nosuid 'Set-id bits and file capabilities have no effect' \
                suid 'They have' \
                nodev 'Device nodes cannot be opened' \
                dev 'They can' \
                noexec 'Nothing can be executed' \
                exec 'Programs can be executed' \
                nosymfollow 'Symbolic links are not followed' \
                symfollow 'They are' \
                noatime 'Reading does not change access times' \
                atime 'relatime' \
                relatime 'relatime' \
                norelatime 'relatime' \
                nostrictatime 'relatime' \
                strictatime 'Reading always changes access times' \
                nodiratime 'Reading a directory does not change its access time' \
                diratime 'It does' \
                lazytime 'Set on the mount' \
                nolazytime 'Not set' \
                sync 'All writes are synchronous' \
                async 'They are not' \
                dirsync 'Changes of directories are on disk before they are answered' \
                remount 'Changes the flags of the mount that is there (ro, nosuid, noatime ...) and starts nothing'
            for i in (seq 1 2 (count $names))
                printf '%s%s\t%s\n' $before $names[$i] $names[(math $i + 1)]
            end
    end
end

complete -c unionfs -f
complete -c unionfs -n '__fish_is_nth_token 1' -a mount -d 'Mount a union (the default: the word may be left out)'
complete -c unionfs -n '__fish_is_nth_token 1' -a umount -d 'Take a mount away'
complete -c unionfs -n '__fish_is_nth_token 1' -a upgrade -d 'Have this program serve a mount (made with -o supervise) from now on'
complete -c unionfs -n '__fish_is_nth_token 1' -a ctl -d 'Look into a running mount: what it is made of, what it does and how long that takes'
complete -c unionfs -n '__fish_seen_subcommand_from ctl' -l json -d 'Tell it as JSON'
complete -c unionfs -n '__fish_seen_subcommand_from ctl' -l prometheus -d 'Tell stats as Prometheus reads them'
complete -c unionfs -n '__fish_seen_subcommand_from ctl' -l slower -x -d 'For trace: keep requests that take so many milliseconds or longer from now on; 10 at first'
complete -c unionfs -n '__fish_seen_subcommand_from ctl' -l below -x -d 'For layers add: directly below this layer; without it, on top of the lowers'
complete -c unionfs -n '__fish_seen_subcommand_from ctl' -l every -x -d 'For top: look every so many seconds'
complete -c unionfs -n '__fish_seen_subcommand_from ctl' -l count -x -d 'For top: end after so many looks'
complete -c unionfs -n '__fish_is_nth_token 1' -a plink -d 'List or flush what holds the names of linked files together'
complete -c unionfs -n '__fish_seen_subcommand_from plink; and __fish_is_nth_token 2' -a 'list flush'
complete -c unionfs -n '__fish_seen_subcommand_from plink' -l json -d 'Of the list: one JSON array, an object for each name'
complete -c unionfs -n '__fish_is_nth_token 1' -a diff -d 'Show what an upper changes: as a list, as JSON, as a layer or an image for container engines'
complete -c unionfs -n '__fish_seen_subcommand_from diff' -l json -d 'One JSON array, an object for each change'
complete -c unionfs -n '__fish_seen_subcommand_from diff' -l tar -r -F -d 'Write a layer archive: tar with whiteouts, hard links, attributes and holes; - is stdout'
complete -c unionfs -n '__fish_seen_subcommand_from diff' -l oci -r -F -d 'Write an image of that one layer, for podman load; - is stdout'
complete -c unionfs -n '__fish_is_nth_token 1' -a apply -d 'Unpack a layer of a container engine, or of diff, onto a directory'
complete -c unionfs -n '__fish_seen_subcommand_from apply' -l layer -d 'Keep whiteouts as they are: the directory is to be a layer of a union'
complete -c unionfs -n '__fish_seen_subcommand_from apply' -F
complete -c unionfs -n '__fish_is_nth_token 1' -a check -d 'Find what serves nothing in an upper: what a crash or another program left; and mend it'
complete -c unionfs -n '__fish_seen_subcommand_from check' -l repair -d 'Mend what can be mended without a change of what the union shows'
complete -c unionfs -n '__fish_seen_subcommand_from check' -l json -d 'One JSON array, an object for each problem'
complete -c unionfs -n '__fish_is_nth_token 1' -a convert -d 'Change the whiteouts and opaque marks of a layer to the form of another program, in place'
complete -c unionfs -n '__fish_seen_subcommand_from convert' -l to -x -a 'aufs overlay fuse-overlayfs unionfs-fuse unionfs-fuse-1.0' -d 'Whose form the whiteouts and opaque marks get: aufs, overlay, fuse-overlayfs, unionfs-fuse, or unionfs-fuse-1.0 (which has another directory for them)'
complete -c unionfs -n '__fish_is_nth_token 1' -a commit -d 'Merge the changes of an upper into the directory below it; the upper is empty afterwards'
complete -c unionfs -n '__fish_seen_subcommand_from commit' -l below -x -d 'A directory below LOWER, topmost first; may be given several times. LOWER then keeps whiteouts, which hide what these have'
complete -c unionfs -n '__fish_seen_subcommand_from commit' -l json -d 'One JSON object with what was done'
complete -c unionfs -n '__fish_is_nth_token 1' -a run -d 'Run a command on a throw-away view of all files, and show what it changed'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l lower -x -d 'A directory that is the root for the command, instead of /; of several, the first is on top'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l upper -x -d 'A directory for the changes; what earlier commands changed there shows again'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l keep -d 'Keep the changes, and tell where they are'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l discard -d 'Throw the changes away'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l commit -d 'Make the changes for real'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l net -d 'Let the command use the network'
complete -c unionfs -n '__fish_seen_subcommand_from run' -l json -d 'Tell the changes as JSON on stdout, instead of as a tree on stderr'
complete -c unionfs -n '__fish_is_nth_token 1' -a demo -d 'Build a small stack of layers, mount it and show what a union does'
complete -c unionfs -a '(__fish_complete_directories (commandline -ct))'
complete -c unionfs -s o -x -d 'Mount options' -a '(__unionfs_options)'
complete -c unionfs -s f -d 'Stay in the foreground'
complete -c unionfs -s d -d 'Debug: stay in the foreground and log everything'
complete -c unionfs -s r -d 'Take no changes: -o ro'
complete -c unionfs -s s -d 'Serve with one thread, as libfuse\'s programs do'
complete -c unionfs -l sloppy -d 'Say nothing about options that are not known'
complete -c unionfs -s N -r -F -d 'Mount in the mount namespace of that file, such as /proc/PID/ns/mnt'
complete -c unionfs -l check -d 'Check the options, the layers and the mountpoint, but mount nothing'
complete -c unionfs -s h -l help -d 'Print help'
complete -c unionfs -s V -l version -d 'Print version'
