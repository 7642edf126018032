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
@VALUES@
        case '*=*' @COLONS@
        case '*'
            set -l names \
@NAMES@
            for i in (seq 1 2 (count $names))
                printf '%s%s\t%s\n' $before $names[$i] $names[(math $i + 1)]
            end
    end
end

complete -c unionfs -f
@VERBS@
complete -c unionfs -a '(__fish_complete_directories (commandline -ct))'
complete -c unionfs -s o -x -d 'Mount options' -a '(__unionfs_options)'
@FLAGS@
