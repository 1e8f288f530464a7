"""Numbers of system calls that no tool may make."""

# Calls with the same number on every architecture, then those of x86-64.
COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "landlock_create_ruleset": 444, "memfd_secret": 447, "process_mrelease": 448,
    "set_mempolicy_home_node": 450, "cachestat": 451, "map_shadow_stack": 453, "statmount": 457,
    "listmount": 458, "lsm_set_self_attr": 460, "setxattrat": 463, "open_tree_attr": 467,
}  # fmt: skip
X86_64 = {
    "ptrace": 101, "syslog": 103, "setpgid": 109, "setsid": 112, "personality": 135, "vhangup": 153,
    "modify_ldt": 154, "pivot_root": 155, "arch_prctl": 158, "adjtimex": 159, "chroot": 161,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169,
    "sethostname": 170, "iopl": 172, "init_module": 175, "quotactl": 179, "tkill": 200,
    "io_setup": 206, "remap_file_pages": 216, "timer_create": 222, "clock_settime": 227,
    "mbind": 237, "set_mempolicy": 238, "mq_open": 240, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "ioprio_set": 251, "inotify_init": 253, "migrate_pages": 256,
    "unshare": 272, "tee": 276, "sync_file_range": 277, "vmsplice": 278, "move_pages": 279,
    "fallocate": 285, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "sched_setattr": 314, "seccomp": 317, "kexec_file_load": 320, "bpf": 321, "execveat": 322,
    "userfaultfd": 323, "pkey_alloc": 330, "semget": 64, "shmget": 29, "msgget": 68,
    "a future call": 700,
}  # fmt: skip
