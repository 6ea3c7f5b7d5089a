# What containers may do that have no other profile. Capabilities, seccomp and namespaces bound them first; this takes
# away what these leave open: files of the kernel that are not the container's, mounts, and other containers' processes.
#
# No abi is named: kernels and parsers then mediate what they all know, and leave io_uring, user namespaces and the like
# to seccomp and sysctls.
profile criserver-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  umount,

  # Everybody may signal it whose own profile lets him; it and its like signal and trace one another alone.
  signal (receive),
  signal (send) peer=criserver-default,
  ptrace (trace,read,tracedby,readby) peer=criserver-default,

  # Volumes are the runtime's to mount.
  deny mount,

  # Of /proc only the directories of processes are written to, whose names are numbers ("self" is one). Sysctls are set
  # by the runtime, as the pod asks for them.
  deny /proc/* w,
  deny /proc/[^0-9]*/** w,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,

  # Of /sys only cgroups are written to, where they are mounted writable: what is not below /sys/fs/cg.
  deny /sys/{[^f],f[^s],fs/[^c],fs/c[^g]}** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/{,**} rwklx,
}
