//! RS485: what one member sends, all others hear.
//!
//! ```text
//! member --bytes--> hub --the same bytes--> every other member (with `echo` the sender, too)
//! ```
//!
//! Members are pseudo-terminals that the hub makes, serial devices that are there already, and
//! whoever connects to a socket. A member that does not read loses bytes, as a UART does; it never
//! holds up the others. What is said while nobody has a pseudo-terminal open is not there for who
//! opens it next. The hub knows no baud rate: bytes pass as they come, so two who talk at once are
//! heard one after the other and not as garbage.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};
use serde::Serialize;

use crate::{Address, Door, SetupError, Stream, interest, is_later, is_ready, sleep};

/// Bytes that wait for a reader, besides what the kernel keeps; more are lost.
const QUEUE: usize = 16 * 1024;
/// How soon it is noticed that someone has opened a pseudo-terminal.
const LOOK: Duration = Duration::from_millis(5);

/// What the bus is made of.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// How many pseudo-terminals to make.
    pub ptys: usize,
    /// Where to put links to them, named `0`, `1` and so on.
    pub dir: Option<PathBuf>,
    /// Where others may connect.
    pub listen: Vec<Address>,
    /// Devices to open, with the baud rate to set (or leave).
    pub ttys: Vec<(PathBuf, Option<u32>)>,
    /// A sender hears itself, as behind a transceiver whose receiver stays on.
    pub echo: bool,
}

/// What a run saw.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always `rs485`.
    pub bus: &'static str,
    /// How long it ran.
    pub seconds: f64,
    /// Everyone who was there, in order of coming.
    pub members: Vec<MemberReport>,
}

/// One member's share.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemberReport {
    /// The device, or where it came from.
    pub name: String,
    /// Bytes that it sent.
    pub sent_bytes: u64,
    /// Bytes that it was given.
    pub received_bytes: u64,
    /// Bytes that it did not fetch in time.
    pub lost_bytes: u64,
    /// Whether it was still there at the end.
    pub present: bool,
}

enum Line {
    /// Our end; `open` while a program holds theirs, which is at `path`.
    Pty {
        ours: OwnedFd,
        path: PathBuf,
        open: bool,
    },
    Tty(File),
    Socket(Stream),
}

struct Member {
    line: Line,
    queue: VecDeque<u8>,
    /// Place in the report.
    number: usize,
}

/// A bus with its members; see the module.
pub struct Hub {
    doors: Vec<Door>,
    members: Vec<Member>,
    report: Vec<MemberReport>,
    links: Vec<PathBuf>,
    ptys: Vec<PathBuf>,
    echo: bool,
    started: Instant,
}

impl Hub {
    /// Makes and opens everything; nothing is passed on yet.
    pub fn open(config: &Config) -> Result<Self, SetupError> {
        let mut hub = Self {
            doors: Vec::new(),
            members: Vec::new(),
            report: Vec::new(),
            links: Vec::new(),
            ptys: Vec::new(),
            echo: config.echo,
            started: Instant::now(),
        };
        if let Some(dir) = &config.dir {
            std::fs::create_dir_all(dir)
                .map_err(SetupError::new(format!("making {}", dir.display())))?;
        }
        for n in 0..config.ptys {
            let (line, path) = make_pty().map_err(SetupError::new("making a pseudo-terminal"))?;
            let mut name = path.clone();
            if let Some(dir) = &config.dir {
                name = dir.join(n.to_string());
                link(&path, &name)
                    .map_err(SetupError::new(format!("linking {}", name.display())))?;
                hub.links.push(name.clone());
            }
            hub.join(line, name.display().to_string());
            hub.ptys.push(name);
        }
        for (path, baud) in &config.ttys {
            let line = open_tty(path, *baud)
                .map_err(SetupError::new(format!("opening {}", path.display())))?;
            hub.join(Line::Tty(line), path.display().to_string());
        }
        for at in &config.listen {
            hub.doors.push(Door::open(at)?);
        }
        Ok(hub)
    }

    /// The pseudo-terminals' names, links if there are any.
    pub fn ptys(&self) -> &[PathBuf] {
        &self.ptys
    }

    /// Where others may connect, with the ports that were taken.
    pub fn addresses(&self) -> Vec<Address> {
        self.doors.iter().map(Door::address).collect()
    }

    /// Passes bytes on until `stop` is readable or `time` is over.
    pub fn run(&mut self, stop: BorrowedFd<'_>, time: Option<Duration>) -> io::Result<()> {
        self.started = Instant::now();
        let until = time.map(|time| self.started + time);
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            fds.extend(self.doors.iter().map(|d| PollFd::new(d, PollFlags::IN)));
            let awake = |n: &usize| !self.members[*n].line.is_closed();
            let polled: Vec<usize> = (0..self.members.len()).filter(awake).collect();
            fds.extend(polled.iter().map(|n| {
                let member = &self.members[*n];
                PollFd::new(&member.line, interest(!member.queue.is_empty()))
            }));
            let look = (polled.len() < self.members.len()).then(|| Instant::now() + LOOK);
            sleep(&mut fds, until.into_iter().chain(look).min())?;
            let (knocked, ready) = fds[1..].split_at(self.doors.len());
            let stopped = is_ready(&fds[0]) || until.is_some_and(|at| Instant::now() >= at);
            let knocked: Vec<bool> = knocked.iter().map(is_ready).collect();
            let ready: Vec<usize> = polled
                .into_iter()
                .zip(ready)
                .filter(|(_, fd)| is_ready(fd))
                .map(|(n, _)| n)
                .collect();
            if stopped {
                return Ok(());
            }
            self.pass_on(&ready);
            if look.is_some() {
                self.look_for_openers()?;
            }
            self.accept(&knocked)?;
        }
    }

    /// What was seen so far.
    pub fn report(&self) -> Report {
        let mut members = self.report.clone();
        for member in &self.members {
            members[member.number].present = !member.line.is_closed();
        }
        Report {
            bus: "rs485",
            seconds: self.started.elapsed().as_secs_f64(),
            members,
        }
    }

    fn join(&mut self, line: Line, name: String) {
        tracing::info!("{name} joins");
        self.members.push(Member {
            line,
            queue: VecDeque::new(),
            number: self.report.len(),
        });
        self.report.push(MemberReport {
            name,
            ..MemberReport::default()
        });
    }

    fn accept(&mut self, knocked: &[bool]) -> io::Result<()> {
        for (n, _) in knocked.iter().enumerate().filter(|(_, k)| **k) {
            while let Some((stream, name)) = self.doors[n].accept()? {
                self.join(Line::Socket(stream), name);
            }
        }
        Ok(())
    }

    /// Wakes the pseudo-terminals that someone has opened meanwhile.
    fn look_for_openers(&mut self) -> io::Result<()> {
        for member in &mut self.members {
            let Line::Pty { ours, open, .. } = &mut member.line else {
                continue;
            };
            if !*open {
                let mut fd = [PollFd::new(ours, PollFlags::empty())];
                sleep(&mut fd, Some(Instant::now()))?;
                *open = !is_ready(&fd[0]);
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, ready: &[usize]) {
        let mut gone = vec![false; self.members.len()];
        let mut buffer = [0; 4096];
        for &from in ready {
            self.drain(from, &mut gone);
            let n = match rustix::io::read(&self.members[from].line, &mut buffer) {
                Ok(n) if n > 0 => n,
                Err(e) if is_later(&e.into()) => continue,
                Ok(_) | Err(_) => {
                    gone[from] = !self.members[from].close();
                    continue;
                }
            };
            self.report[self.members[from].number].sent_bytes += n as u64;
            for to in 0..self.members.len() {
                if (to != from || self.echo) && !gone[to] && !self.members[to].line.is_closed() {
                    self.members[to].queue.extend(&buffer[..n]);
                    self.report[self.members[to].number].received_bytes += n as u64;
                    self.drain(to, &mut gone);
                }
            }
        }
        let mut n = 0;
        self.members.retain(|member| {
            n += 1;
            if gone[n - 1] {
                tracing::info!("{} leaves", self.report[member.number].name);
            }
            !gone[n - 1]
        });
    }

    /// Writes what waits for a member, and gives up what it has no room for.
    fn drain(&mut self, to: usize, gone: &mut [bool]) {
        let member = &mut self.members[to];
        let report = &mut self.report[member.number];
        while !member.queue.is_empty() {
            match rustix::io::write(&member.line, member.queue.as_slices().0) {
                Ok(n) => drop(member.queue.drain(..n)),
                Err(e) if is_later(&e.into()) => break,
                Err(_) => {
                    gone[to] = !member.close();
                    return;
                }
            }
        }
        let excess = member.queue.len().saturating_sub(QUEUE);
        member.queue.drain(..excess);
        report.lost_bytes += excess as u64;
        report.received_bytes -= excess as u64;
    }
}

impl Member {
    /// Whether the line stays and can be opened again. Old bytes do not wait for who does.
    fn close(&mut self) -> bool {
        let Line::Pty { path, open, .. } = &mut self.line else {
            return false;
        };
        self.queue.clear();
        *open = false;
        File::open(path).is_ok_and(|theirs| tcflush(theirs, QueueSelector::IFlush).is_ok())
    }
}

impl Line {
    /// A pseudo-terminal that nobody has opened.
    fn is_closed(&self) -> bool {
        matches!(self, Self::Pty { open: false, .. })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for link in &self.links {
            let _ = std::fs::remove_file(link);
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pty { ours, .. } => ours.as_fd(),
            Self::Tty(file) => file.as_fd(),
            Self::Socket(stream) => stream.as_fd(),
        }
    }
}

/// A raw pseudo-terminal and the path of its far end.
fn make_pty() -> io::Result<(Line, PathBuf)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes()));
    // Closed again at once: what it is set to stays as long as our end lives.
    drop(open_tty(&path, None)?);
    rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
    let line = Line::Pty {
        ours,
        path: path.clone(),
        open: false,
    };
    Ok((line, path))
}

/// Opens a terminal device and makes it raw.
fn open_tty(path: &Path, baud: Option<u32>) -> io::Result<File> {
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    let mut termios = tcgetattr(&file)?;
    termios.make_raw();
    if let Some(baud) = baud {
        termios.set_speed(baud)?;
    }
    tcsetattr(&file, OptionalActions::Now, &termios)?;
    Ok(file)
}

/// Replaces a link that an earlier hub has left, but nothing else.
fn link(target: &Path, name: &Path) -> io::Result<()> {
    if name.is_symlink() {
        std::fs::remove_file(name)?;
    }
    symlink(target, name)
}
