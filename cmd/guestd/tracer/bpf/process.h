/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The life of processes: fork, exec, exit, and who is tracked. */

/* ns_nr is the number of a task's thread in the pid namespace of a level. */
FUNC u32 ns_nr(u64 task, u32 level)
{
	u64 pid = rdp(task + cfg.task_thread_pid);

	if (!pid || rd32(pid + cfg.pid_level) < level)
		return 0;
	return rd32(pid + cfg.pid_numbers + level * cfg.upid_size + cfg.upid_nr);
}

inline_ u32 level_of(u64 task)
{
	return rd32(rdp(task + cfg.task_thread_pid) + cfg.pid_level) & 31;
}

/* event begins a record of another type about the task. */
inline_ struct task *event(struct task *of, u32 type, u32 n)
{
	u32 zero = 0;
	struct task *e = bpf_map_lookup_elem(&scratch, &zero);

	if (!e)
		return 0;
	e->flags = of->flags;
	__builtin_memset(&e->rec, 0, sizeof(e->rec));
	__builtin_memset(e->data, 0, ARGS_LEN);
	e->rec.type = type;
	e->rec.abi = cfg.abi;
	e->rec.tid = of->rec.tid;
	e->rec.begin = e->rec.end = bpf_ktime_get_boot_ns();
	set_args(e, n);
	return e;
}

/* identify fills in who the task is, and tells guestd. */
STATIC_FUNC int identify(struct task *t, u64 task)
{
	u64 leader = rdp(task + cfg.task_leader);
	struct task *e;

	t->rec.type = REC_SYSCALL;
	t->rec.tid = rd32(task + cfg.task_pid);
	t->tgid = rd32(task + cfg.task_tgid);
	t->ns_tid = ns_nr(task, t->level);
	t->ns_tgid = ns_nr(leader, t->level);
	t->start = rd64(leader + cfg.task_start);
	e = event(t, REC_TASK, 4);
	if (e) {
		args(e)[0] = t->tgid;
		args(e)[1] = t->ns_tid;
		args(e)[2] = t->ns_tgid;
		args(e)[3] = t->start;
		put(e, 0);
	}
	return 0;
}

/* take_slot gives a task a slot, if there is one. The compilers that FLAT programs
 * are for have no atomics: what cannot do without is left to the hash table. */
inline_ struct task *take_slot(u32 tid)
{
	u32 slot;
	u64 fresh;

	if (tid >= DIRECT)
		return 0;
	if (bpf_map_pop_elem(&free_slots, &slot)) {
		if (ctl.slots >= SLOTS)
			return 0;
#ifdef FLAT
		if (!cfg.batch)
			return 0;
		fresh = ctl.slots++;
#else
		fresh = __sync_fetch_and_add(&ctl.slots, 1);
#endif
		if (fresh >= SLOTS)
			return 0;
		slot = fresh;
	}
	*slot_at(tid) = slot + 1;
	return bpf_map_lookup_elem(&slots, &slot);
}

inline_ struct task *take_hashed(u32 tid, struct task *from)
{
	if (bpf_map_update_elem(&tasks, &tid, from, BPF_ANY)) {
		stats()->untracked++;
		return 0;
	}
	if (tid < DIRECT)
		*slot_at(tid) = IN_HASH;
	return bpf_map_lookup_elem(&tasks, &tid);
}

/* release frees the state of a task. */
inline_ void release(u32 tid)
{
	u32 slot = IN_HASH;

	if (tid < DIRECT) {
		slot = *slot_at(tid);
		*slot_at(tid) = 0;
	}
	if (slot == IN_HASH) {
		bpf_map_delete_elem(&tasks, &tid);
	} else if (slot) {
		slot--;
		bpf_map_push_elem(&free_slots, &slot, BPF_ANY);
	}
}

/* track begins to record a task, or counts that it could not. */
STATIC_FUNC struct task *track(u32 tid, u64 task, u32 level, u32 flags)
{
	u32 zero = 0;
	struct task *t, *blank_task = bpf_map_lookup_elem(&blank, &zero);

	if (!blank_task)
		return 0;
	release(tid); /* of one whose end was not seen */
	t = take_slot(tid);
	if (!t)
		t = take_hashed(tid, blank_task);
	if (!t)
		return 0;
	t->in_call = 0;
	t->level = level & 31;
	t->flags = flags;
	t->skip = 1;
	identify(t, task);
	ctl.engaged = 1;
	return t;
}

inline_ int is_armer(u32 tid)
{
	int i;

	for (i = 0; i < MAX_ARMERS; i++)
		if (ctl.armers[i] == tid)
			return 1;
	return 0;
}

/* forked records that a task has a child. */
FUNC int forked(struct task *t, u64 parent, u64 child)
{
	u32 tid = rd32(child + cfg.task_pid), tgid = rd32(child + cfg.task_tgid);
	struct task *c, *e;
	u64 share = 0;

	GUARD(t);
	if (rdp(parent + cfg.task_mm) == rdp(child + cfg.task_mm)) {
		share |= SHARE_VM;
		t->flags |= SHARED;
	}
	c = track(tid, child, t->level, share ? t->flags : t->flags & ~SHARED);
	e = event(t, REC_FORK, 6);
	if (!e)
		return 0;
	args(e)[0] = tid;
	args(e)[1] = tgid;
	if (c) {
		args(e)[2] = c->ns_tid;
		args(e)[3] = c->ns_tgid;
		args(e)[4] = c->start;
	}
	if (tgid == t->tgid)
		share |= SHARE_THREAD;
	if (rdp(parent + cfg.task_files) == rdp(child + cfg.task_files))
		share |= SHARE_FILES;
	if (rdp(parent + cfg.task_fs) == rdp(child + cfg.task_fs))
		share |= SHARE_FS;
	args(e)[5] = share;
	return emit(e, 0);
}

SEC("raw_tracepoint/sched_process_fork")
int process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	u64 parent = ctx->args[0], child = ctx->args[1];
	u32 tid = current_tid(), ctid, one = 1;
	struct task *t = find(tid);

	if (t)
		return forked(t, parent, child);
	/* guestd's new threads are its own. */
	if (!bpf_map_lookup_elem(&armed, &tid) &&
	    !(is_armer(tid) && rd32(child + cfg.task_tgid) != rd32(parent + cfg.task_tgid)))
		return 0;
	ctid = rd32(child + cfg.task_pid);
	bpf_map_update_elem(&armed, &ctid, &one, BPF_ANY);
	return 0;
}

/* The workers of io_uring's rings are threads of the process, too, and one may be
 * its last. No fork is told of them. */
SEC("raw_tracepoint/task_newtask")
int new_task(struct bpf_raw_tracepoint_args *ctx)
{
	u64 child = ctx->args[0];
	struct task *t = find(current_tid());

	if (!t || !(rd32(child + cfg.task_flags) & PF_IO_WORKER))
		return 0;
	return forked(t, (klong)bpf_get_current_task(), child);
}

/* walk_up takes one step and says whether there is another. */
FUNC int walk_up(struct task *e)
{
	struct walk *w;
	u64 up;
	s32 n;

	GUARD(e);
	w = &e->walk;
	if (w->dentry == w->root && w->vfsmnt == w->root_mnt) {
		w->done = 1;
		return 0;
	}
	up = rdp(w->dentry + cfg.dentry_parent);
	if (up == w->dentry) { /* the root of a mount */
		u64 mount = w->vfsmnt - cfg.mount_mnt, above = rdp(mount + cfg.mount_parent);

		if (!above || above == mount)
			return 0;
		w->dentry = rdp(mount + cfg.mount_point);
		w->vfsmnt = above + cfg.mount_mnt;
		return 1;
	}
	if (w->pos > LARGE - 8 - PIECE_NAME)
		return 0;
	n = piece_name(e, e->length + HEAD + w->pos, rdp(w->dentry + cfg.dentry_name));
	if (n <= 0)
		return 0;
	w->pos += n;
	w->dentry = up;
	return 1;
}

#define CWD_COUNT 40

/* put_cwd appends the names of the current directory and of those above it. */
FUNC int put_cwd(struct task *e, u64 task)
{
	struct walk *w;
	u64 fs;
	int i;

	GUARD(e);
	if (cfg.mount_parent == OFF_NONE || e->length > AREA - HEAD - LARGE)
		return 0;
	w = &e->walk;
	w->pos = w->done = 0;
	fs = rdp(task + cfg.task_fs);
	w->dentry = rdp(fs + cfg.fs_pwd + cfg.path_dentry);
	w->vfsmnt = rdp(fs + cfg.fs_pwd + cfg.path_mnt);
	w->root = rdp(fs + cfg.fs_root + cfg.path_dentry);
	w->root_mnt = rdp(fs + cfg.fs_root + cfg.path_mnt);
	for (i = 0; i < CWD_COUNT; i++)
		if (!walk_up(e))
			break;
	return close_pieces(e, w->pos, META(NO_ARG, ATT_CWD), w->done ? 0 : ATT_F_TRUNCATED);
}

/* put_range appends the program's arguments or variables. */
FUNC int put_range(struct task *e, u64 from, u64 to, u32 limit, u32 kind)
{
	u64 n = to - from;

	GUARD(e);
	if (!from || to <= from)
		return 0;
	if (put_some(e, from, n, limit, META(NO_ARG, kind), 0) >= 0)
		return 0;
	if (put_some(e, from, n, SMALL, META(NO_ARG, kind), ATT_F_TRUNCATED) >= 0)
		return 0;
	put_empty(e, META(NO_ARG, kind), ATT_F_UNREADABLE);
	stats()->unreadable++;
	return 0;
}

/* executed records that a task has become a program. */
FUNC int executed(struct task *t, u64 task, u64 bprm, u32 old)
{
	u64 mm = rdp(task + cfg.task_mm), filename, interp, inode;
	struct task *e;

	GUARD(t);
	e = event(t, REC_EXEC, 6);
	if (!e)
		return 0;
	t->flags &= ~SHARED;
	args(e)[0] = old;
	args(e)[3] = rd32(bprm + cfg.bprm_argc);
	args(e)[4] = rd32(bprm + cfg.bprm_envc);
	args(e)[5] = rd32(rdp(task + cfg.task_cred) + cfg.cred_euid);
	if (cfg.mm_exe_file != OFF_NONE) {
		inode = rdp(rdp(mm + cfg.mm_exe_file) + cfg.file_inode);
		args(e)[1] = rdp(inode + cfg.inode_ino);
		args(e)[2] = rd32(rdp(inode + cfg.inode_sb) + cfg.sb_dev);
	}
	filename = rdp(bprm + cfg.bprm_filename);
	put_kernel_string(e, filename, META(NO_ARG, ATT_STRING));
	put_range(e, rdp(mm + cfg.mm_arg_start), rdp(mm + cfg.mm_arg_end), LARGE, ATT_ARGV);
	put_kernel_string(e, task + cfg.task_comm, META(NO_ARG, ATT_COMM));
	interp = rdp(bprm + cfg.bprm_interp);
	if (interp != filename)
		put_kernel_string(e, interp, META(NO_ARG, ATT_INTERP));
	put_range(e, rdp(mm + cfg.mm_env_start), rdp(mm + cfg.mm_env_end), 1024, ATT_ENV);
	put_cwd(e, task);
	return emit(e, 0);
}

/* moved gives the task's state to its new number: exec by another thread than
 * the first makes it the first. */
STATIC_FUNC struct task *moved(u32 from, u32 to, u64 task)
{
	struct task *t = find(from);

	if (!t)
		return 0;
	release(to);
	if (from < DIRECT && to < DIRECT && *slot_at(from) != IN_HASH) {
		*slot_at(to) = *slot_at(from);
		*slot_at(from) = 0;
	} else {
		t = take_hashed(to, t);
		release(from);
	}
	if (t)
		identify(t, task);
	return t;
}

/* started_by_kernel: core_pattern, modprobe and the like. */
inline_ int started_by_kernel(u64 task)
{
	return cfg.helpers && ctl.engaged && rd32(rdp(task + cfg.task_parent) + cfg.task_flags) & PF_KTHREAD;
}

SEC("raw_tracepoint/sched_process_exec")
int process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0], bprm = ctx->args[2];
	u32 tid = current_tid(), old = ctx->args[1];
	struct task *t;

	t = find(old);
	if (t) {
		if (old != tid)
			t = moved(old, tid, task);
	} else if (bpf_map_lookup_elem(&armed, &old)) {
		bpf_map_delete_elem(&armed, &old);
		t = track(tid, task, level_of(task), 0);
	} else if (started_by_kernel(task)) {
		t = track(tid, task, level_of(task), REC_F_HELPER);
	} else {
		return 0;
	}
	return t ? executed(t, task, bprm, old) : 0;
}

SEC("raw_tracepoint/sched_process_exit")
int process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0], signal;
	u32 tid = current_tid(), live;
	struct task *t, *e;

	t = find(tid);
	if (!t) {
		bpf_map_delete_elem(&armed, &tid);
		return 0;
	}
	if (t->in_call == 1) {
		t->rec.end = 0;
		t->rec.result = 0;
		mark_pending(t);
		emit(t, REC_F_UNFINISHED);
	}
	t->in_call = 0;
	e = event(t, REC_EXIT, 3);
	if (e) {
		signal = rdp(task + cfg.task_signal);
		live = rd32(signal + cfg.signal_live);
		args(e)[0] = rd32(task + cfg.task_exit_code);
		args(e)[1] = live;
		if (!live)
			args(e)[2] = rd32(signal + cfg.signal_flags) & SIGNAL_GROUP_EXIT ?
				rd32(signal + cfg.signal_exit_code) :
				rd32(rdp(task + cfg.task_leader) + cfg.task_exit_code);
		emit(e, 0);
	}
	release(tid);
	return 0;
}
