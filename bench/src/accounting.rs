//! Owns what a process has cost: its processor time and its memory, as the kernel accounts for them.

use std::time::Duration;

use crate::Failure;

/// The processor time, user and system, of all of a process's threads, those that have ended too.
///
/// From the process's own CPU clock, in nanoseconds: `/proc/PID/stat` counts in ticks of 10 ms, and
/// `/proc/PID/task/*/schedstat` forgets threads that have ended.
#[expect(
    unsafe_code,
    reason = "no safe crate of ours reads another process's clock"
)]
pub fn cpu(pid: u32) -> Result<Duration, Failure> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls only write to the places that they are given, which outlive them.
    let read = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    if !read {
        return Err(format!("process {pid} is gone").into());
    }
    let seconds = u64::try_from(time.tv_sec)?;
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec)?))
}

/// The processor time of the thread called `name`, until now.
pub fn thread(pid: u32, name: &str) -> Result<Duration, Failure> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim() == name {
            let text = std::fs::read_to_string(task.join("schedstat"))?;
            let nanos = text.split(' ').next().ok_or("no time")?;
            return Ok(Duration::from_nanos(nanos.parse()?));
        }
    }
    Err(format!("no thread {name}").into())
}

/// Resident memory in bytes.
pub fn resident(pid: u32) -> Result<f64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no VmRSS")?
        .parse()?;
    Ok(kib * 1024.0)
}

/// How many files this process may open at most, and what it starts.
pub fn files_at_most() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Lets this process, and what it starts, open `wanted` files.
pub fn allow_files(wanted: u64) -> Result<(), Failure> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let hard = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = Rlimit {
        current: Some(wanted),
        maximum: hard,
    };
    setrlimit(Resource::Nofile, raised).map_err(|error| {
        let most = limit.maximum.unwrap_or_default();
        format!("{wanted} open files are needed, and {most} is the limit here ({error}): see `ulimit -Hn`, or leave out what needs so many with --only").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_ended_still_counts() {
        let busy = || {
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_millis(30) {}
        };
        let before = cpu(std::process::id()).unwrap();
        std::thread::spawn(busy).join().unwrap();
        let after = cpu(std::process::id()).unwrap();
        assert!(after > before);
    }
}
