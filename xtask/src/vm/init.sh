#!/bin/busybox sh
# The first process of the VM of `./x vm`: makes the host's files visible, runs the job, ends the machine.
#
# What is written goes to the VM's memory. /run, /tmp's stand-in ($TMPDIR) and the kernel's own file systems are
# fresh; the only network interface is lo; modules are loaded on demand. /vm/settings says `modules` (the host's
# directory of them) and `release`; /vm/job is what to do, in calls of `run`; /vm/load holds the modules that are
# needed before anything else can be read, named in the order in which they are loaded.
# shellcheck disable=SC1091 # what is read here is made for each VM
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

fail() {
    echo "init: cannot $*" >/dev/console
    /bin/busybox poweroff -f
}

# shellcheck disable=SC2154 # set by /vm/settings
prepare() {
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    . /vm/settings
    for module in /vm/load/*; do insmod "$module" || fail "load $module"; done
    mount -t virtiofs root /host || fail "see the host's files"
    mount -t tmpfs mem /mem || fail "mount a tmpfs"
    mkdir /mem/upper /mem/work
    mount -t overlay -o lowerdir=/host,upperdir=/mem/upper,workdir=/mem/work root /root ||
        fail "make the host's files writable"
    for fs in proc sys dev; do mount -o move /$fs /root/$fs; done
    cd /root || fail "enter /root"
    mkdir -p dev/pts dev/shm dev/mqueue "lib/modules/$release" || fail "write to the host's files"
    mount -t devpts pts dev/pts
    mount -t tmpfs shm dev/shm
    mount -t mqueue mqueue dev/mqueue
    mount -t cgroup2 cgroup sys/fs/cgroup
    mount -t bpf bpf sys/fs/bpf
    mount -t debugfs debugfs sys/kernel/debug
    mount -t tracefs tracefs sys/kernel/tracing
    mount -o bind "/host$modules" "lib/modules/$release" || fail "find the modules"
    mount -t tmpfs run run
    mkdir run/lock run/tmp run/vm
    cp /bin/busybox /init /vm/settings /vm/job run/vm
    # Whatever loads modules on this host, if anything does.
    ln -s busybox run/vm/modprobe
    echo /run/vm/modprobe >/root/proc/sys/kernel/modprobe
    ln -sf /proc/self/fd dev/fd
    for n in 0:in 1:out 2:err; do ln -sf "fd/${n%:*}" "dev/std${n#*:}"; done
    exec switch_root /root /run/vm/busybox sh /run/vm/init host || fail "change over to the host's files"
}

# run NAME DIRECTORY COMMAND...: both streams say what begins, the first one how it ended.
run() {
    echo "@begin $1"
    echo "@begin $1" >&2
    status=125
    if cd "$2"; then
        shift 2
        "$@" </dev/null
        status=$?
    fi
    echo "@end $status"
}

work() {
    cd /run/vm || fail "enter /run/vm"
    . ./settings
    export TMPDIR=/run/tmp HOME=/root
    /run/vm/busybox hostname vm
    /run/vm/busybox ip link set lo up
    # A pipe can be opened again by name (/dev/stdout); a port of virtio cannot.
    /run/vm/busybox mkfifo out err
    /run/vm/busybox cat out >/dev/vport0p1 &
    out=$!
    /run/vm/busybox cat err >/dev/vport0p2 &
    err=$!
    (. ./job) >out 2>err
    # What was left running would hold the pipes.
    for process in /proc/[0-9]*; do
        case ${process#/proc/} in 1 | "$out" | "$err") ;; *) kill -9 "${process#/proc/}" 2>/dev/null ;; esac
    done
    wait
    /run/vm/busybox poweroff -f
}

case ${1:-} in
host) work ;;
*) prepare ;;
esac
