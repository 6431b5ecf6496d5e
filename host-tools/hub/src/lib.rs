//! One bus for many firmwares without hardware: decides nothing about what is said, only who hears
//! it and when.
//!
//! ```text
//! native_sim --pty----.                     native_sim --socket--.
//! QEMU       --tcp----+-- serial::Hub       native_sim --socket--+-- can::Hub (a CanBus of
//! an adapter --tty----'  bytes to others    a test     --socket--'   helio-sim in real time)
//! ```
//!
//! Each hub is one thread around `poll`: whatever has come is passed on before it sleeps again.
//! [`serial::Hub::run`] and [`can::Hub::run`] return when their `stop` becomes readable or the time
//! is over, and what they counted is then in `report`.

pub mod can;
pub mod record;
pub mod serial;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};

/// Where members knock: `127.0.0.1:2000` or a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On this machine only.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(at) if at.ip().is_loopback() => Ok(Self::Tcp(at)),
            Ok(at) => Err(format!(
                "{} is not this machine alone; a bus knows no passwords: use 127.0.0.1:{}",
                at.ip(),
                at.port()
            )),
            Err(_) => Err(format!(
                "{text:?} is no address; write 127.0.0.1:PORT or a path with a slash"
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => at.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why a hub could not be set up.
#[derive(Debug)]
pub struct SetupError {
    /// What it was doing, on what.
    pub doing: String,
    /// What came of it.
    pub error: io::Error,
}

impl SetupError {
    fn new(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |error| Self { doing, error }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.error)
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A bound [`Address`].
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A connection through a [`Door`].
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Door {
    fn open(at: &Address) -> Result<Self, SetupError> {
        let door = match at {
            Address::Tcp(at) => TcpListener::bind(at).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }),
            Address::Unix(path) => bind_unix(path).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, path.clone()))
            }),
        };
        door.map_err(SetupError::new(format!("listening at {at}")))
    }

    /// The address with the port that was really taken.
    fn address(&self) -> Address {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(at) => Address::Tcp(at),
                Err(_) => Address::Tcp(([127, 0, 0, 1], 0).into()),
            },
            Self::Unix(_, path) => Address::Unix(path.clone()),
        }
    }

    /// The next one who waits, if any.
    fn accept(&self) -> io::Result<Option<(Stream, String)>> {
        let accepted = match self {
            Self::Tcp(listener) => listener.accept().and_then(|(stream, from)| {
                stream.set_nonblocking(true)?;
                // A frame that waits for company would be late.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), from.to_string()))
            }),
            Self::Unix(listener, path) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok((Stream::Unix(stream), path.display().to_string()))
            }),
        };
        match accepted {
            Ok(some) => Ok(Some(some)),
            Err(e) if is_later(&e) => Ok(None),
            // Who hung up before we looked is nobody.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may have been removed by someone else; no matter.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A socket file left by a hub that was killed is taken over, one in use is not.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            let refused = UnixStream::connect(path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if !refused {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        done => done,
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

fn is_later(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Sleeps until one of `fds` is ready or `until` has come.
fn sleep(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let left = until.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        }
    });
    match rustix::event::poll(fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    !fd.revents().is_empty()
}

/// For a descriptor that is read, and written to when `writing`.
fn interest(writing: bool) -> PollFlags {
    if writing {
        PollFlags::IN | PollFlags::OUT
    } else {
        PollFlags::IN
    }
}

/// Lets timers of this thread end when they are due, not up to 50 µs later, where the kernel lets
/// us say so.
fn ask_for_sharp_timers() {
    let _ = std::fs::write("/proc/thread-self/timerslack_ns", "1000");
}
