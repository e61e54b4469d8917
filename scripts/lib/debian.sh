# shellcheck shell=bash disable=SC2154
# Debian's packages in a folder: a minimal Debian of a suite, whatever the machine itself has. Nothing
# is installed on the machine but debootstrap.
#
# Mounts are made in a mount namespace of the process that needs them and vanish with it.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

packages_work() {
    [[ $EUID == 0 ]] && command -v apt-get >/dev/null && command -v dpkg >/dev/null
}

# Every process that runs inside the chroot; only those are ever signalled.
processes_inside() {
    local folder
    for folder in /proc/[0-9]*; do
        if [[ $folder/root -ef $1 ]]; then echo "${folder#/proc/}"; fi
    done
}

# The lines `ORIGIN|LABEL|SITE` of apt's sources; empty without package lists.
apt_sources() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' 'Created-By: Packages'
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >&2; }

apt_install() {
    apt update
    apt install -y --no-install-recommends "$@"
}

debian_mirror() {
    local mirror=${POSTRIDER_DEBIAN_MIRROR:-}
    if [[ -z $mirror ]]; then
        mirror=$(apt_sources | awk -F'|' '!n && $1 == "Debian" && $2 == "Debian" { print $3; n = 1 }')
    fi
    if [[ $mirror == mirror+file:* ]]; then
        mirror=$(awk '!n && /^[a-z]+:/ { print $1; n = 1 }' "${mirror#mirror+file:}")
    fi
    [[ $mirror =~ ^(https?|file): ]] || fail "apt on this machine names no Debian mirror" \
        "(found: '$mirror'); set POSTRIDER_DEBIAN_MIRROR to the URL of one"
    echo "${mirror%/}"
}

# install_debian VERSION SUITE PACKAGES FILE FINISH: makes the root of a broker. PACKAGES are joined by
# commas, FILE is one of what they must bring, and FINISH a function that completes the folder.
install_debian() {
    local version=$1 suite=$2 packages=$3 file=$4 finish=$5
    local root name mirror building log
    root=$(root_of "$version")
    name=$(name_of "$version")
    building=$root.building
    log=$root.install.log
    packages_work || fail "$name from packages needs root on Debian"
    if [[ -e $root ]]; then return; fi

    if ! command -v debootstrap >/dev/null || [[ ! -e $keyring ]]; then
        say "installing debootstrap"
        apt_install debootstrap debian-archive-keyring || fail "apt-get cannot install debootstrap"
    elif [[ -z $(apt_sources) ]]; then
        apt update
    fi
    mirror=$(debian_mirror)
    say "installing $name from Debian $suite; this takes about a minute"
    if ! bootstrap "$suite" "$building" "$mirror" "$packages" >"$log" 2>&1; then
        # A keyring older than the suite: apt gets a newer one, which it verifies itself.
        if grep -qE 'unknown key|Invalid Release signature' "$log"; then
            say "this machine's Debian keyring does not know the keys of $suite; updating it"
            apt_install debian-archive-keyring
            bootstrap "$suite" "$building" "$mirror" "$packages" >>"$log" 2>&1 || true
        fi
    fi
    if [[ ! -e $building/$file || -e $building/debootstrap ]]; then
        tail -n 15 "$log" | sed 's/^/    /' >&2
        fail "installing $name from Debian $suite failed; the end of $log is above"
    fi
    "$finish" "$version" "$building"

    rm -rf "$building"/var/cache/apt/*.bin "$building"/var/cache/apt/archives/*.deb \
        "$building"/var/lib/apt/lists/* "$building"/usr/share/{doc,man,locale}
    # Only a whole installation ever has its final name.
    mv "$building" "$root"
    say "installed $name ($(du -sh "$root" | cut -f1))"
}

bootstrap() {
    local suite=$1 folder=$2 mirror=$3 packages=$4 script
    # One script builds all of Debian's suites; a debootstrap older than the suite has it only
    # under the names it knew.
    script=/usr/share/debootstrap/scripts/$suite
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    remove_folder "$folder"
    unshare --mount debootstrap --variant=minbase --include="$packages" --keyring="$keyring" \
        "$suite" "$folder" "$mirror" "$script"
}

# Never reaches into another file system, whatever may be mounted below the folder.
remove_folder() {
    local process
    for process in $(processes_inside "$1"); do kill -KILL "$process" 2>/dev/null || true; done
    rm -rf --one-file-system "$1"
}

# Removes what was installed of a broker.
purge_debian() {
    local root
    root=$(root_of "$1")
    [[ -e $root || -e $root.building ]] || return 0
    say "removing $(name_of "$1") from $root"
    remove_folder "$root"
    remove_folder "$root.building"
    rm -f "$root.install.log"
}
