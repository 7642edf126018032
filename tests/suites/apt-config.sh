# The machine's own apt configuration, for a root that is built elsewhere: the suites name no
# mirror of their own.
# shellcheck shell=bash

# The release that this machine's apt is configured for.
apt_codename() {
    (. /etc/os-release && echo "${VERSION_CODENAME:-}")
}

# Prints the sources of release $1 and of its updates, security and the like as one-line entries.
# Other sources of the machine (third-party ones) do not belong to a Debian root.
apt_sources() {
    local codename=$1 file deb822=(/dev/null)
    for file in /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || deb822+=("$file")
    done
    local oneline=(/dev/null)
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ ! -e "$file" ] || oneline+=("$file")
    done
    {
        cat "${oneline[@]}" | sed -E -n 's/[[:space:]]+#.*//; /^deb[[:space:]]/p'
        awk 'function flush(   u, s, nu, ns, i, j) {
                 if (f["types"] ~ /(^| )deb( |$)/ && f["enabled"] != "no") {
                     nu = split(f["uris"], u, " "); ns = split(f["suites"], s, " ")
                     for (i = 1; i <= nu; i++) for (j = 1; j <= ns; j++)
                         print "deb " (f["signed-by"] ~ /^\// ? "[signed-by=" f["signed-by"] "] " : "") \
                             u[i] " " s[j] " " f["components"]
                 }
                 delete f; key = ""
             }
             FNR == 1 { flush() }
             /^#/ { next }
             /^[[:space:]]*$/ { flush(); next }
             /^[[:space:]]/ { f[key] = f[key] " " $0; next }
             { i = index($0, ":"); key = tolower(substr($0, 1, i - 1)); v = substr($0, i + 1)
               sub(/^[[:space:]]+/, "", v); f[key] = v }
             END { flush() }' "${deb822[@]}"
    } | awk -v c="$codename" '{ i = ($2 ~ /^\[/) ? 2 : 1; while (i > 1 && $i !~ /\]$/) i++
                                suite = $(i + 2) }
                              suite == c || index(suite, c "-") == 1 || index(suite, c "/") == 1' | sort -u
}

# Prints the settings of apt that decide whether and how it reaches the mirror.
apt_options() {
    apt-config dump | grep -iE '^Acquire::(http|https|ftp|Check-Valid-Until|Check-Date|Retries|ForceIPv4|Languages)\b' \
        | grep -v '""' || true
}

# The key rings that the sources on stdin name.
apt_keyrings() {
    sed -n -E 's/.*signed-by=([^] ]+).*/\1/p' | tr ',' '\n' | sort -u
}
