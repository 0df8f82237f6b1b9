"""What the tiny guest image holds besides Debian's binaries: its start-up scripts and account files.

The guest lives in an initramfs: nothing of it is on the disk, so every boot starts fresh. One directory holds all
programs (``/bin``; ``/sbin`` and ``/usr`` lead there). Everything is busybox ash.

Start-up (``/etc/rc``): modules, then side by side: the NICs (udhcpc), the config drive (an IDE CD, probed while
DHCP waits) and the SSH server; then the metadata: config drive first, else 169.254.169.254. The login prompt comes
when the metadata is settled, or after five seconds, while the search goes on behind it.
"""

from __future__ import annotations

USER = "cirros"  # the user name clients and suites expect of a tiny test image
PASSWORD_HASH = "$6$nubila$jUAaGSfuPIOSAhG4QCdJ9PuROBlKGZ/0C7l/kl.3F/3fSqho4Nd0ZwDZ2koC/I153Ni2ebY.DLrb2BooqrFfH1"

EARLY_MODULES = ("button", "evdev", "virtio_pci", "virtio_blk", "virtio-rng", "virtio_net")
LATE_MODULES = ("virtio_scsi", "sd_mod", "ata_piix", "sr_mod", "isofs")
SPARE_MODULES = (
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859-1",
    "nls_utf8",
    "8021q",
    "dummy",
    "loop",
    "virtio_console",
)

# path -> (mode, text)
FILES: dict[str, tuple[int, str]] = {
    "etc/inittab": (
        0o644,
        """\
::sysinit:/etc/rc
ttyS0::respawn:/bin/getty -L 115200 ttyS0 vt100
::ctrlaltdel:/bin/reboot
""",
    ),
    "etc/rc": (
        0o755,
        """\
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run/net /etc/dropbear
mount -t devpts -o gid=5,mode=620 pts /dev/pts
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
exec <>/dev/console >&0 2>&1
say() { read -r up idle </proc/uptime; echo "[$up] tiny: $*"; }
say "starting"
read -r early </etc/modules.early
modprobe -a $early || say "some of the modules $early failed"
mkfifo /run/settled /run/leased /run/wake
exec 3<>/run/settled 4<>/run/wake 5<>/run/leased
hostname tiny
ip link set lo up
(
  read -r late </etc/modules.late
  modprobe -a $late
  /bin/config-drive
  : >/run/probed
  echo probed >&4
) &
nics=0
for path in /sys/class/net/eth*; do
  [ -e "$path" ] && nics=$((nics + 1)) && nic-up "${path##*/}" && say "${path##*/}: asking for an address"
done
uevent /bin/hotplug >/dev/null 2>&1 &
acpid -f -c /etc/acpi -l /dev/null &
dropbear -R
/bin/metadata &
[ $nics = 0 ] || read -t 3 -r lease <&5
read -t 5 -r outcome <&3 || outcome="metadata: still looking, in the background"
say "network:"
ip -o address | while read -r n name rest; do echo "  $name ${rest%%\\\\*}"; done
ip route | while read -r route; do echo "  route $route"; done
say "$outcome"
read -r name </etc/hostname
say "hostname $name, user cirros (password gocubsgo), sudo without password"
""",
    ),
    "bin/hotplug": (
        0o755,
        """\
#!/bin/sh
# called by uevent for every kernel event: only network devices need us, the kernel makes the other nodes
[ "$SUBSYSTEM" = net ] || exit 0
case "$ACTION $INTERFACE" in
  "add eth"*) exec /bin/nic-up "$INTERFACE" ;;
  "remove eth"*) kill "$(cat /run/udhcpc."$INTERFACE".pid)"; rm -f /run/udhcpc."$INTERFACE".pid ;;
esac
""",
    ),
    "bin/nic-up": (
        0o755,
        """\
#!/bin/sh
# nic-up ETH: link up and a DHCP client that never gives up; busybox udhcpc renews on SIGUSR1
mkdir "/run/net/$1" 2>/dev/null || [ ! -e "/run/udhcpc.$1.pid" ] || exit 0
[ ! -e "/run/fixed.$1" ] || exit 0
ip link set "$1" up
udhcpc -f -S -i "$1" -p "/run/udhcpc.$1.pid" -s /bin/udhcpc-event -t 4 -T 1 -A 3 -x hostname:"$(hostname)" \\
  -O mtu -O staticroutes -O search >/dev/null 2>&1 &
""",
    ),
    "bin/udhcpc-event": (
        0o755,
        """\
#!/bin/sh
# udhcpc calls this with what the server said; classless routes (option 121) replace the router (RFC 3442)
metric=$((100 + ${interface#eth}))
[ ! -e "/run/fixed.$interface" ] || exit 0  # fixed-addresses was faster
case "$1" in
  deconfig)
    ip -4 address flush dev "$interface"
    ip link set "$interface" up ;;
  bound|renew)
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    case "$(ip -4 -o address show dev "$interface")" in
      *" $ip/$mask "*) ;;
      *)
        ip -4 address flush dev "$interface"
        ip address add "$ip/$mask" broadcast "${broadcast:-+}" dev "$interface" ;;
    esac
    # busybox does not flush by protocol: take away what goes through a gateway, keep what the address brought
    ip -4 route show dev "$interface" | while read -r to how rest; do
      [ "$how" != via ] || ip route del "$to" $how $rest dev "$interface"
    done
    if [ -n "$staticroutes" ]; then
      set -- $staticroutes
      while [ $# -ge 2 ]; do
        via="via $2"; [ "$2" = 0.0.0.0 ] && via="scope link"
        ip route add "$1" $via dev "$interface" metric "$metric"
        shift 2
      done
    elif [ -n "$router" ]; then
      set -- $router
      ip route add default via "$1" dev "$interface" metric "$metric"
    fi
    if [ -n "$dns$domain$search" ]; then
      {
        [ -z "$search$domain" ] || echo "search ${search:-$domain}"
        for server in $dns; do echo "nameserver $server"; done
      } >/etc/resolv.conf
    fi
    if [ ! -e "/run/net/$interface/bound" ]; then
      read -r up idle </proc/uptime
      echo "[$up] tiny: $interface: lease of $ip obtained from $serverid" >/dev/console
      : >"/run/net/$interface/bound"
      echo "$ip" 1<>/run/leased
      echo "$ip" 1<>/run/wake
    fi ;;
esac
""",
    ),
    "bin/config-drive": (
        0o755,
        """\
#!/bin/sh
# copies a config drive's files to /run/config-drive, where the guest keeps them after the drive is unmounted
drive="$(blkid -L config-2)" || exit 0
mkdir -p /run/config-mount
mount -o ro "$drive" /run/config-mount || exit 0
mkdir -m 700 /run/config-copy
cp -r /run/config-mount/openstack /run/config-mount/ec2 /run/config-copy/ 2>/dev/null
umount /run/config-mount
mv /run/config-copy /run/config-drive
/bin/fixed-addresses /run/config-drive/openstack/latest/network_data.json
""",
    ),
    "bin/fixed-addresses": (
        0o755,
        """\
#!/bin/sh
# fixed-addresses FILE: IPv4 addresses that the metadata gives to cards whose networks have no DHCP
[ -s "$1" ] || exit 0
field() { echo "$line" | sed -n 's/.*"'"$1"'": *"\\([^"]*\\)".*/\\1/p'; }
sed 's/{/\\n/g' "$1" | while read -r line || [ -n "$line" ]; do
  case "$line" in
    *'"ethernet_mac_address"'*)
      card="$(grep -l "$(field ethernet_mac_address)" /sys/class/net/eth*/address | cut -d / -f 5)"
      echo "$(field id) $card $(echo "$line" | sed -n 's/.*"mtu": *\\([0-9]*\\).*/\\1/p')" >>/run/links ;;
    *'"type": "ipv4"'*)
      card= mtu=
      link="$(field link)"
      while read -r id name size; do [ "$id" != "$link" ] || { card=$name mtu=$size; }; done </run/links
      [ -n "$card" ] || continue
      : >"/run/fixed.$card"
      [ ! -e "/run/udhcpc.$card.pid" ] || kill "$(cat "/run/udhcpc.$card.pid")"
      ip link set "$card" up
      [ -z "$mtu" ] || ip link set "$card" mtu "$mtu"
      ip address add "$(field ip_address)/$(field netmask)" broadcast + dev "$card"
      read -r up idle </proc/uptime
      echo "[$up] tiny: $card: $(field ip_address) from the config drive" >/dev/console
      field ip_address 1<>/run/leased
      field ip_address 1<>/run/wake ;;
    *'"type": "ipv'*) card= ;;
    *'"gateway"'*)
      [ -z "$card" ] || ip route add "$(field network)/$(field netmask)" via "$(field gateway)" dev "$card" ;;
    *'"type": "dns"'*) [ -z "$card" ] || echo "nameserver $(field address)" >>/etc/resolv.conf ;;
  esac
done
""",
    ),
    "bin/metadata": (
        0o755,
        """\
#!/bin/sh
# finds the metadata, applies it (hostname, keys, user-data) and tells /run/settled in one line how it went
url=http://169.254.169.254
work=/run/metadata
mkdir -m 700 -p $work
# Debian's busybox crashes on wget -T: bound the whole program instead
get() { timeout 4 wget -q -O "$work/$2" "$url/$1" 2>/dev/null || { rm -f "$work/$2"; return 1; }; }
text() { sed -n 's/.*"'"$1"'": *"\\([^"]*\\)".*/\\1/p' "$work/meta_data.json" | head -n 1; }

apply() {
  if [ -s $work/meta_data.json ]; then
    name="$(text hostname)"
    sed 's/\\\\n/\\n/g; s/\\\\\\//\\//g' $work/meta_data.json |
      grep -oE '(ssh-(rsa|dss|ed25519)|ecdsa-sha2-[a-z0-9-]+) [A-Za-z0-9+/=]+[^"]*' | sort -u >$work/keys
  else
    name="$(cat $work/hostname 2>/dev/null)"
    cp $work/key $work/keys 2>/dev/null || : >$work/keys
  fi
  [ -z "$name" ] || hostname "${name%%.*}"
  name="$(hostname)"
  echo "$name" >/etc/hostname
  echo "127.0.0.1 localhost $name" >/etc/hosts
  install_keys
  keys="$(grep -c . $work/keys)"
  echo "metadata: from $1, $keys SSH key(s) installed for cirros" >&3
  read -r first <$work/user_data && case "$first" in
    "#!"*)
      cp $work/user_data /run/user-data; chmod 700 /run/user-data
      echo "[$(cut -d ' ' -f 1 /proc/uptime)] tiny: running the user-data script"
      (cd / && HOME=/root /run/user-data 2>&1 | tee /var/log/user-data.log) & ;;
  esac 2>/dev/null
}

install_keys() {
  mkdir -p /home/cirros/.ssh
  cat $work/keys >/home/cirros/.ssh/authorized_keys
  chmod 700 /home/cirros/.ssh
  chmod 600 /home/cirros/.ssh/authorized_keys
  chown -R 1000:1000 /home/cirros/.ssh
}

: >$work/user_data
tries=0
while :; do
  if [ -d /run/config-drive/openstack ]; then
    cp /run/config-drive/openstack/latest/meta_data.json $work/ 2>/dev/null
    cp /run/config-drive/openstack/latest/user_data $work/ 2>/dev/null
    apply "the config drive"
    exit
  fi
  if [ -e /run/probed ]; then
    found=$(echo /run/net/eth*)
    if [ "$found" = "/run/net/eth*" ]; then
      [ $tries -gt 60 ] || echo "metadata: no config drive and no network" >&3
      tries=61
    elif ip route get 169.254.169.254 >/dev/null 2>&1; then
      if get openstack/latest/meta_data.json meta_data.json; then
        get openstack/latest/user_data user_data || : >$work/user_data
        apply "$url (OpenStack)"
        exit
      elif get latest/meta-data/instance-id instance-id; then
        get latest/meta-data/hostname hostname
        get latest/meta-data/public-keys/0/openssh-key key
        get latest/user-data user_data || : >$work/user_data
        apply "$url (EC2)"
        exit
      fi
    fi
  fi
  tries=$((tries + 1))
  pause=1; [ $tries -lt 60 ] || pause=5
  read -t $pause -r woken <&4
done
""",
    ),
    # where busybox acpid looks for what to do when the power button is pressed
    "etc/acpi/PWRF/00000080": (
        0o755,
        "#!/bin/sh\necho 'tiny: power button pressed' >/dev/console\nexec /bin/poweroff\n",
    ),
    "bin/poweroff": (0o755, "#!/bin/sh\nsync\numount -a -r 2>/dev/null\nexec busybox poweroff -f\n"),
    "bin/halt": (0o755, "#!/bin/sh\nexec /bin/poweroff\n"),
    "bin/reboot": (0o755, "#!/bin/sh\nsync\numount -a -r 2>/dev/null\nexec busybox reboot -f\n"),
    "bin/curl": (
        0o755,
        """\
#!/bin/sh
# the part of curl's command line that test suites use, on busybox wget
data=; out=-; url=; timeout=; quiet=; set_data=
headers=/tmp/.curl.$$; : >"$headers"
while [ $# -gt 0 ]; do
  case "$1" in
    -V|--version) echo "curl 0.0 (busybox wget)"; rm -f "$headers"; exit 0 ;;
    -X|--request) shift; [ "$1" = POST ] && set_data=1 ;;
    -d|--data|--data-raw|--data-binary) shift; data="$1"; set_data=1 ;;
    -H|--header) shift; echo "$1" >>"$headers" ;;
    -o|--output) shift; out="$1" ;;
    -m|--max-time|--connect-timeout) shift; timeout="timeout $1" ;;
    -s|-S|-f|-L|-g|-k|-sS|-sf|-fsS|-sSf|-sL|--silent|--fail|--show-error|--location|--globoff) ;;
    --) ;;
    -*) echo "curl: option $1 is not known to this small curl" >&2; rm -f "$headers"; exit 2 ;;
    *) url="$1" ;;
  esac
  shift
done
set -- -q -O "$out"
[ -z "$set_data" ] || set -- "$@" --post-data "$data"
while read -r header; do set -- "$@" --header "$header"; done <"$headers"
rm -f "$headers"
$timeout wget "$@" "$url"
""",
    ),
    "bin/nc": (
        0o755,
        """\
#!/bin/sh
# busybox nc for TCP (a persistent server is -ll there), Debian's netcat for UDP; takes the flags of both
# started as lib/tcp/nc and lib/udp/nc: suites look for a process called nc, and kill it by that name
listen=; keep=; udp=; port=; run=; wait=; verbose=; zero=
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; break ;;
    -?*)
      flags="${1#-}"; shift
      while [ -n "$flags" ]; do
        flag="${flags%"${flags#?}"}"; flags="${flags#?}"
        case "$flag" in
          l) listen=1 ;;
          k) keep=1 ;;
          u) udp=1 ;;
          v|n|N) ;;
          z) zero=1 ;;
          p) port="${flags:-$1}"; [ -n "$flags" ] || shift; flags= ;;
          w) wait="${flags:-$1}"; [ -n "$flags" ] || shift; flags= ;;
          e) run="$*"; set --; flags= ;;
          *) echo "nc: option -$flag is not known" >&2; exit 2 ;;
        esac
      done ;;
    *) break ;;
  esac
done
if [ -n "$udp" ]; then
  real="/lib/udp/nc -u ${wait:+-w $wait}"
  [ -z "$listen" ] && exec $real "$@"
  [ -n "$port" ] || port="$1"
  [ -n "$run" ] && printf '#!/bin/sh\\nexec %s\\n' "$run" >"/tmp/.nc.$$" && chmod 755 "/tmp/.nc.$$"
  while $real -l -p "$port" ${run:+-e /tmp/.nc.$$} ${run:+-w 1}; [ -n "$keep" ]; do :; done
  exit
fi
if [ -n "$listen" ]; then
  [ -n "$port" ] || port="$1"
  [ -n "$run" ] && exec /lib/tcp/nc "-l${keep:+l}" ${wait:+-w $wait} -p "$port" -e $run
  while /lib/tcp/nc -l ${wait:+-w $wait} -p "$port"; [ -n "$keep" ]; do :; done
  exit
fi
[ -z "$zero" ] || exec /lib/tcp/nc ${wait:+-w $wait} "$@" </dev/null
exec /lib/tcp/nc ${wait:+-w $wait} ${port:+-p $port} "$@"
""",
    ),
    "bin/mkfs": (
        0o755,
        '#!/bin/sh\nkind=ext4\n[ "$1" = -t ] && kind="$2" && shift 2\nexec "mkfs.$kind" "$@"\n',
    ),
    "etc/passwd": (
        0o644,
        "root:x:0:0:root:/root:/bin/sh\n"
        f"{USER}:x:1000:1000:non-root user:/home/{USER}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    "etc/group": (0o644, f"root:x:0:\ntty:x:5:\ndisk:x:6:\nsudo:x:27:{USER}\n{USER}:x:1000:\nnogroup:x:65534:\n"),
    "etc/shadow": (0o600, f"root:*:19000:0:99999:7:::\n{USER}:{PASSWORD_HASH}:19000:0:99999:7:::\n"),
    "etc/shells": (0o644, "/bin/sh\n/bin/ash\n"),
    "etc/sudoers": (
        0o440,
        "Defaults !authenticate, !lecture, !use_pty, secure_path=/bin, !log_allowed\n"
        f"root ALL=(ALL:ALL) ALL\n{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n",
    ),
    "etc/pam.d/other": (
        0o644,
        "auth required pam_permit.so\naccount required pam_permit.so\n"
        "session required pam_permit.so\npassword required pam_deny.so\n",
    ),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n"),
    "etc/profile": (0o644, "export PATH=/bin\nPS1='$ '\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost tiny\n::1 localhost\n"),
    "etc/hostname": (0o644, "tiny\n"),
    "etc/issue": (0o644, "\nTiny test guest (\\r). Log in as cirros with password gocubsgo, or with your SSH key.\n"),
    "etc/filesystems": (0o644, "ext4\nvfat\niso9660\n"),
    "etc/services": (0o644, "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\n"),
    "etc/os-release": (0o644, 'ID=nubila-tiny\nNAME="Nubila tiny guest"\nPRETTY_NAME="Nubila tiny guest"\n'),
}

DIRECTORIES: dict[str, int] = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "etc/acpi": 0o755,
    "etc/acpi/PWRF": 0o755,
    "etc/pam.d": 0o755,
    "home": 0o755,
    f"home/{USER}": 0o755,
    "lib": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/log": 0o755,
    "var/lib": 0o755,
    "var/www": 0o755,
}

LINKS: dict[str, str] = {
    "init": "bin/init",
    "sbin": "bin",
    "usr": ".",
    "lib64": "lib",
    "var/run": "../run",
    "var/lock": "../run",
    "var/tmp": "../tmp",
    "etc/mtab": "../proc/mounts",
    "lib/udp/nc": "../../bin/nc.traditional",
}
