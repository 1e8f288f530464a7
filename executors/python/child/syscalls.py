"""Numbers of the system calls that a sandboxed tool is refused, for the two architectures that are supported.

From the kernel's own tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h). A name that an
architecture lacks is absent from its table.
"""

# ruff: noqa: SIM905  # lists of words read best as text

from __future__ import annotations

# The newest number that these tables know; what came later is answered as unknown to the kernel.
NEWEST = 450

# Starting processes and programs; `clone` is judged by its flags where threads are granted.
PROCESSES = "fork vfork execve execveat".split()

# Reaching other processes of the same user.
SIGNALS = (
    "kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd ptrace process_vm_readv "
    "process_vm_writev process_madvise process_mrelease kcmp sched_setaffinity sched_setscheduler sched_setparam "
    "sched_setattr setpriority ioprio_set migrate_pages move_pages "
).split()

# Kernel objects that outlive the process, and memory outside its address space.
LASTING = (
    "shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semctl semtimedop mq_open mq_unlink add_key "
    "request_key keyctl memfd_create memfd_secret "
).split()

# Large or privileged kernel interfaces, and ways around this filter.
KERNEL = (
    "perf_event_open bpf userfaultfd personality io_uring_setup io_uring_enter io_uring_register io_setup unshare "
    "setns mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr "
    "swapon swapoff quotactl quotactl_fd name_to_handle_at open_by_handle_at fanotify_init fanotify_mark "
    "inotify_init inotify_init1 inotify_add_watch reboot kexec_load kexec_file_load init_module finit_module "
    "delete_module acct syslog sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex iopl "
    "ioperm vhangup modify_ldt mbind set_mempolicy "
).split()

# Owners, modes, times and attributes of files, which Landlock does not cover.
METADATA = (
    "chmod fchmod fchmodat chown fchown lchown fchownat utime utimes utimensat futimesat setxattr lsetxattr "
    "fsetxattr removexattr lremovexattr fremovexattr "
).split()

# Making, moving and removing files, where nothing else bounds it.
FILES = (
    "creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat truncate "
).split()

X86_64 = {
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
    "process_madvise": 440, "process_mrelease": 448, "kcmp": 312, "sched_setaffinity": 203, "sched_setscheduler": 144,
    "sched_setparam": 142, "sched_setattr": 314, "setpriority": 141, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279,
    "shmget": 29, "shmat": 30, "shmctl": 31, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "semget": 64, "semop": 65,
    "semctl": 66, "semtimedop": 220, "mq_open": 240, "mq_unlink": 241, "add_key": 248, "request_key": 249, "keyctl": 250,
    "memfd_create": 319, "memfd_secret": 447, "perf_event_open": 298, "bpf": 321, "userfaultfd": 323, "personality": 135,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "io_setup": 206, "unshare": 272, "setns": 308,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "move_mount": 429, "open_tree": 428, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "swapon": 167, "swapoff": 168, "quotactl": 179,
    "quotactl_fd": 443, "name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300, "fanotify_mark": 301,
    "inotify_init": 253, "inotify_init1": 294, "inotify_add_watch": 254, "reboot": 169, "kexec_load": 246, "kexec_file_load": 320,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "acct": 163, "syslog": 103, "sethostname": 170,
    "setdomainname": 171, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159, "iopl": 172, "ioperm": 173,
    "vhangup": 153, "modify_ldt": 154, "mbind": 237, "set_mempolicy": 238, "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92,
    "fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "utimensat": 280, "futimesat": 261, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "creat": 85, "unlink": 87,
    "unlinkat": 263, "rename": 82, "renameat": 264, "renameat2": 316, "mkdir": 83, "mkdirat": 258, "rmdir": 84, "link": 86,
    "linkat": 265, "symlink": 88, "symlinkat": 266, "mknod": 133, "mknodat": 259, "truncate": 76, "clone": 56, "clone3": 435,
    "tgkill": 234, "prctl": 157, "prlimit64": 302, "socket": 41, "open": 2, "openat": 257, "openat2": 437,
}  # fmt: skip

AARCH64 = {
    "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "pidfd_open": 434,
    "pidfd_send_signal": 424, "pidfd_getfd": 438, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
    "process_madvise": 440, "process_mrelease": 448, "kcmp": 272, "sched_setaffinity": 122, "sched_setscheduler": 119,
    "sched_setparam": 118, "sched_setattr": 274, "setpriority": 140, "ioprio_set": 30, "migrate_pages": 238, "move_pages": 239,
    "shmget": 194, "shmat": 196, "shmctl": 195, "msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "semget": 190,
    "semop": 193, "semctl": 191, "semtimedop": 192, "mq_open": 180, "mq_unlink": 181, "add_key": 217, "request_key": 218,
    "keyctl": 219, "memfd_create": 279, "memfd_secret": 447, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282, "personality": 92,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "io_setup": 0, "unshare": 97, "setns": 268, "mount": 40,
    "umount2": 39, "pivot_root": 41, "chroot": 51, "move_mount": 429, "open_tree": 428, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "mount_setattr": 442, "swapon": 224, "swapoff": 225, "quotactl": 60, "quotactl_fd": 443, "name_to_handle_at": 264,
    "open_by_handle_at": 265, "fanotify_init": 262, "fanotify_mark": 263, "inotify_init1": 26, "inotify_add_watch": 27, "reboot": 142,
    "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273, "delete_module": 106, "acct": 89,
    "syslog": 116, "sethostname": 161, "setdomainname": 162, "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266,
    "adjtimex": 171, "vhangup": 58, "mbind": 235, "set_mempolicy": 237, "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54,
    "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "unlinkat": 35, "renameat": 38, "renameat2": 276, "mkdirat": 34, "linkat": 37, "symlinkat": 36, "mknodat": 33, "truncate": 45,
    "clone": 220, "clone3": 435, "tgkill": 131, "prctl": 167, "prlimit64": 261, "socket": 198, "openat": 56, "openat2": 437,
}  # fmt: skip
