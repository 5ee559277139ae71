/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The format of package trace (schemas/trace) as the tracer writes it, and the
 * tracer's configuration. The Go side checks both against this header's BTF.
 */
#ifndef RECORD_H
#define RECORD_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

/* The kernel's long. */
#ifdef LONG32
typedef u32 klong;
typedef s32 kslong;
#else
typedef u64 klong;
typedef s64 kslong;
#endif

struct record {
	u16 length;
	u8 type;
	u8 abi;
	u8 flags;
	u8 mux;
	u8 args;
	u8 attachments;
	u32 tid;
	u32 call;
	u64 begin, end;
	s64 result;
	u64 ip;
};

enum { REC_SYSCALL = 1, REC_FORK, REC_EXEC, REC_EXIT, REC_STATS, REC_TASK };

#define REC_F_ENTRY 1
#define REC_F_UNFINISHED 2
#define REC_F_CONTINUED 4
#define REC_F_NO_ENTRY 8
#define REC_F_HELPER 16

struct attachment {
	u8 arg;
	u8 kind;
	u16 flags;
	u32 length;
};

#define NO_ARG 0xff

enum { ATT_STRING = 1, ATT_BYTES, ATT_STRUCT, ATT_SOCKADDR, ATT_ARGV, ATT_ENV, ATT_COMM, ATT_INTERP, ATT_CWD };

#define ATT_F_UNREADABLE 1
#define ATT_F_AT_EXIT 2
#define ATT_F_TRUNCATED 4

#define SHARE_THREAD 1
#define SHARE_VM 2
#define SHARE_FILES 4
#define SHARE_FS 8

/* What the tracer does with one system call. */
struct spec {
	u8 flags;
	u8 args; /* how many it has */
	u8 in, out; /* bits of arguments to capture when it begins and returns */
	u8 kind[6]; /* CAPTURE_... */
	u8 param[6];
};

#define SPEC_ENTRY 1 /* emit a record when the call begins */
#define SPEC_MUX 2 /* args[0] is a sub-call, args[1] points to its arguments */
#define SPEC_EXEC 4 /* success replaces the program */

/* Where the system calls of an ABI lie in specs. */
struct table {
	u32 first, count, base;
};

/*
 * Where things lie in the kernel's structures; OFF_NONE: not known, so that
 * what needs it is left out.
 */
#define OFF_NONE 0xffffffff

struct config {
	u32 abi, abi_compat, abi_x32; /* numbers of package sysno; 0: there is none */
	u32 mux_base; /* in specs */
	u32 helpers; /* follow programs that the kernel starts */
	u32 batch; /* there is one CPU */
	u32 wake_bytes; /* wake the reader after as many */
	u32 btf; /* the kernel has BTF, so that programs can look at a task directly */
	u32 compat_mask; /* bits of task_status that mark a 32-bit call */
	u32 compat_first; /* or these numbers do, and the next 999 */
	u32 enotsock; /* MIPS has its own */
	u32 regs_ip, regs_ip32, regs_nr, nr_mask;
	u32 regs_sp; /* further arguments are on the stack there; OFF_NONE: never */
	u32 regs_size; /* how much is needed: it may end where the stack does */
	u32 regs_args[6], regs_compat[6];
	u32 task_status, task_pid, task_tgid, task_leader, task_parent, task_start, task_thread_pid;
	u32 task_signal, task_exit_code, task_mm, task_files, task_fs, task_flags, task_comm;
	u32 pid_level, pid_numbers, upid_size, upid_nr;
	u32 signal_live, signal_flags, signal_exit_code;
	u32 mm_arg_start, mm_arg_end, mm_env_start, mm_env_end, mm_exe_file;
	u32 file_inode, inode_ino, inode_sb, sb_dev;
	u32 bprm_filename, bprm_interp, bprm_argc, bprm_envc, task_cred, cred_euid;
	u32 fs_pwd, fs_root, path_mnt, path_dentry;
	u32 dentry_parent, dentry_name, mount_mnt, mount_parent, mount_point;
};

/* Shared with guestd, which maps it. */
#define MAX_CPUS 64
#define MAX_ARMERS 8

struct cpu_stats {
	u64 produced, lost, unreadable, untracked;
	u64 bytes; /* since the reader was woken */
	u64 pad[3];
};

struct control {
	u32 armers[MAX_ARMERS]; /* threads of guestd whose children are armed */
	u32 asleep; /* the reader waits for the first record */
	u32 engaged; /* something is or was tracked */
	u64 slots; /* how many of the slots were ever used; clang 14 forgets to
		      fetch where this has 32 bits */
	u32 pad[4];
	struct cpu_stats cpu[MAX_CPUS];
};

/*
 * A task's state, and the buffer that its record is built in. The whole has
 * a little less than 8 KiB, so that with the kernel's own header it takes
 * no more than that.
 */
#define AREA 7872
#define REGS 304 /* room for as much of struct pt_regs as is needed of it */

#define ARGUMENTS 0x3f /* in retry */
#define WILD(i) (0x100u << (i))
#define AGAIN 0x80000000u /* in retry: the arguments of a sub-call */
#define SHARED 0x100 /* others have the same memory, or had it once */

/* What put_iov and put_argv go through, step by step. */
struct steps {
	u64 at; /* the next element */
	u64 count, total, seen; /* elements; bytes that there are and were gone through */
	u32 pos; /* bytes taken */
	u32 word; /* size of a pointer */
	u32 cut; /* something was left out */
	u32 end;
};

/* A way up from a directory to the process' root, across mounts. */
struct walk {
	u64 dentry, vfsmnt, root, root_mnt;
	u32 pos; /* bytes of names so far */
	u32 done;
};

struct task {
	u32 length; /* of what data holds */
	u32 in_call; /* 0 no, 1 yes, 2 yes and emitted */
	u32 retry; /* bits of arguments to read again; WILD: nothing was mapped there */
	u32 skip; /* the end of a call that began untracked comes next */
	u32 level; /* of the sample's pid namespace */
	u32 flags; /* for every record; and SHARED */
	u32 spec; /* index into specs of the call */
	u32 tgid, ns_tid, ns_tgid;
	u64 start; /* of the process */
	struct record rec;
	u8 data[AREA]; /* arguments and attachments, directly behind rec */
	u32 which, arg; /* arguments to read, and the one that is being read: of capture.h */
	/* Where the way through several pieces has got to. It is here so that the
	 * verifier does not follow it: it would look at each turn anew. */
	union {
		struct steps steps;
		struct walk walk;
	};
};

#endif
