use std::time::Duration;

/// How long a compute thread may go on beside others that want its core. A waking thread with a shorter slice, which is
/// the default of all, gets the core at once, however; with equal ones it would wait for milliseconds, often until the
/// next tick of the clock. Neither gets another share of the core by that.
const SLICE: Duration = Duration::from_millis(20);

/// Asks for long slices for the calling thread (EEVDF, Linux 6.12 and newer). Elsewhere nothing changes.
#[cfg(target_os = "linux")]
pub(super) fn lengthen() {
    /// `struct sched_attr` of `sched_setattr(2)`, its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    const SIZE: u32 = size_of::<Attributes>() as u32;
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes at most `SIZE` bytes; thread 0 is the caller.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    // Whoever runs this under another policy knows what they want.
    if got != 0 || attributes.policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.runtime = SLICE.as_nanos() as u64;
    // SAFETY: as above, and the kernel only reads. Older ones ignore or refuse the slice, which is of no interest.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn lengthen() {}
