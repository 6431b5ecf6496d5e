//! `helio demo`: the whole plant in real time, all four tiers, from one process and a broker beside it.
//!
//! ```text
//! thread "plant"                tokio                                         child process
//! World in real time <-Inbox- serve_udp <-SMP/UDP- bridge --MQTT, TLS 1.3--> helio broker
//!                                                                                 |
//!                       browser <--HTTP-- page <-- subscriber <--MQTT, TLS 1.3----'
//! ```
//!
//! The broker is a process of its own so that it can be killed: it is started again, and nothing
//! that the masters recorded is missing at the subscriber.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use helio_bridge::mqtt::{Backoff, Endpoint};
use helio_bridge::pki::{Demo, Files};
use helio_bridge::{Config, Health};
use helio_bus::BusKind;
use helio_cloud::page::Page;
use helio_cloud::subscriber::Shared;
use helio_cloud::tracker::Counts;
use helio_link::{Client, Inbox, Question, northbound, serve_udp};
use helio_sim::World;
use helio_sim::rack::Rack;
use helio_sim::report::Report;
use helio_sim::scenario::Scenario;
use serde::Serialize;
use tokio::net::UdpSocket;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use crate::BadInput;
use crate::broker::{interruption, runtime};
use crate::sim::bus;

/// Arguments of `helio demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Masters, each with a bus of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    masters: u32,
    /// Slaves on each bus, 16 cells and one anchor each
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..=127))]
    slaves: u8,
    /// Which bus
    #[arg(long, value_parser = bus, default_value = "can-1m")]
    bus: BusKind,
    /// Address of the live page
    #[arg(long, default_value = "127.0.0.1:8080")]
    page: SocketAddr,
    /// Address of the first master (SMP over UDP); further masters take the ports behind it
    #[arg(long, default_value = "127.0.0.1:1337")]
    smp: SocketAddr,
    /// No page
    #[arg(long)]
    headless: bool,
    /// Stop after so long, or at Ctrl-C before
    #[arg(long)]
    seconds: Option<f64>,
    /// One line of JSON when all has started, one at the end
    #[arg(long)]
    json: bool,
    /// Play the current and the faults of this scenario file instead of a quiet rack
    #[arg(long)]
    scenario: Option<std::path::PathBuf>,
}

/// What is printed once everything runs.
#[derive(Serialize)]
struct Started {
    page: Option<String>,
    masters: Vec<SocketAddr>,
    broker: SocketAddr,
    broker_pid: Option<u32>,
    certificates: String,
}

/// What is printed at the end.
#[derive(Serialize)]
struct Ended {
    seconds: f64,
    broker_starts: u32,
    bridges: Vec<Bridged>,
    subscriber: Vec<Seen>,
    memory_max_mb: Option<f64>,
    plant: Report,
}

#[derive(Serialize)]
struct Bridged {
    master: String,
    connections: u64,
    taken: u64,
    repeated: u64,
    resent: u64,
    lost: u64,
}

#[derive(Serialize)]
struct Seen {
    master: String,
    #[serde(flatten)]
    counts: Counts,
}

/// Name of the demonstration's site, part of every topic.
const SITE: &str = "demo";

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let scenario = match &args.scenario {
        Some(file) => Scenario::load(file)?,
        None => quiet(&args)?,
    };
    let masters = *scenario.masters.get_ref();
    let world = World::new(scenario)?;
    let folder =
        tempfile::tempdir().context("there is no folder for temporary files; set TMPDIR")?;
    Demo::new()?.write(folder.path())?;
    let runtime = runtime()?;
    let done = runtime.block_on(live(args, world, masters, folder.path()));
    // Bridges and servers have no end of their own.
    runtime.shutdown_timeout(Duration::from_millis(200));
    done
}

/// 16 cells at each slave under a load that comes and goes, one anchor each, 10 tags.
fn quiet(args: &Args) -> Result<Scenario> {
    let Args {
        masters,
        slaves,
        bus,
        ..
    } = args;
    let strings = if slaves % 2 == 0 { 2 } else { 1 };
    let text = format!(
        "name = \"demo\"\nduration_s = 1e7\nmasters = {masters}\nbus = \"{}\"\n\
         [pack]\nslaves = {slaves}\nstrings = {strings}\ncurrent_a = 2.5\n\
         [hall]\nanchors = {slaves}\ntags = 10\n",
        bus.name()
    );
    Ok(Scenario::parse(
        Path::new("demo"),
        &text,
        Default::default(),
    )?)
}

async fn live(args: Args, world: World, masters: u32, certs: &Path) -> Result<()> {
    // What others may occupy first: the error is the user's to mend.
    let cloud = Shared::new(SITE);
    let page = match args.headless {
        true => None,
        false => Some(
            Page::bind(args.page, cloud.clone())
                .await
                .map_err(|e| BadInput::new(format!("--page: {e:#}")))?,
        ),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (mut inboxes, mut addresses) = (Vec::new(), Vec::new());
    for n in 0..masters {
        let at = SocketAddr::new(
            args.smp.ip(),
            match args.smp.port() {
                0 => 0,
                first => u16::try_from(u32::from(first) + n).unwrap_or(0),
            },
        );
        let socket = UdpSocket::bind(at).await.map_err(|e| {
            BadInput::new(format!(
                "--smp {at}: {e}; stop what uses it or choose another port"
            ))
        })?;
        addresses.push(socket.local_addr()?);
        let (core, inbox) = northbound(64);
        inboxes.push(inbox);
        tokio::spawn(serve_udp(socket, core));
    }
    let plant = {
        let stop = stop.clone();
        std::thread::Builder::new()
            .name("plant".into())
            .stack_size(16 << 20)
            .spawn(move || real_time(world, inboxes, &stop))?
    };

    let broker = Broker::start(certs).await?;
    let (broker_at, pid) = (broker.address, broker.pid());
    let starts = broker.starts.clone();
    tokio::spawn(broker.keep_alive());

    let endpoint = |party: &str| -> Result<Endpoint> {
        let tls = Files::of(certs, party).load()?.client()?;
        Ok(Endpoint {
            host: "localhost".into(),
            port: broker_at.port(),
            tls,
            backoff: Backoff::default(),
        })
    };
    let mut bridges = Vec::new();
    for (n, address) in (1..).zip(&addresses) {
        let name = format!("master-{n}");
        let config = Config {
            site: SITE.into(),
            master: name.clone(),
            broker: endpoint("bridge")?,
            keep: 20_000,
            poll: Duration::from_millis(100),
        };
        let (tell, health) = watch::channel(Health::default());
        tokio::spawn(helio_bridge::run(
            config,
            Client::connect_udp(address).await?,
            tell,
        ));
        bridges.push((name, health));
    }
    {
        let (endpoint, store) = (endpoint("viewer")?, cloud.clone());
        tokio::spawn(async move {
            if let Err(e) =
                helio_cloud::subscriber::run(SITE, "viewer-demo", &endpoint, store).await
            {
                tracing::error!("the subscriber stopped: {e:#}");
            }
        });
    }
    let url = match page {
        Some(page) => {
            let at = page.local_addr()?;
            tokio::spawn(page.run());
            Some(format!("http://{at}/"))
        }
        None => None,
    };

    let started = Started {
        page: url,
        masters: addresses,
        broker: broker_at,
        broker_pid: pid,
        certificates: certs.display().to_string(),
    };
    // Whoever reads that it has started may end it at once.
    let interrupted = interruption()?;
    say_started(&args, &started)?;
    let began = Instant::now();
    let end = Duration::from_secs_f64(args.seconds.unwrap_or(1e9).clamp(0.0, 1e9));
    tokio::select! {
        () = tokio::time::sleep(end) => {}
        done = interrupted => done?,
    }
    stop.store(true, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    let report = tokio::task::spawn_blocking(move || plant.join()).await?;
    let report = report.map_err(|_| anyhow::anyhow!("the plant stopped by itself"))?;
    // What the masters recorded last is on its way.
    settle(&bridges, &cloud).await;
    let ended = Ended {
        seconds,
        broker_starts: starts.load(Ordering::Relaxed),
        bridges: bridges
            .iter()
            .map(|(master, health)| {
                let h = *health.borrow();
                let c = h.counts;
                Bridged {
                    master: master.clone(),
                    connections: h.connections,
                    taken: c.taken,
                    repeated: c.repeated,
                    resent: c.resent,
                    lost: c.lost,
                }
            })
            .collect(),
        subscriber: seen(&cloud),
        memory_max_mb: memory_max_mb(),
        plant: report,
    };
    say_ended(&args, &ended)
}

/// Longest that a client waits before the plant looks at its request.
const TICK: Duration = Duration::from_millis(5);

/// Lets virtual time follow the wall clock and answers clients, until told to stop.
fn real_time(mut world: World, inboxes: Vec<Inbox>, stop: &AtomicBool) -> Report {
    let mut desks: Vec<Desk> = inboxes.into_iter().map(Desk::new).collect();
    let began = Instant::now();
    let mut end = None;
    // When told to stop the plant stands still, but clients may still fetch what was recorded last.
    while end.is_none_or(|end| Instant::now() < end) {
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(Instant::now() + Duration::from_secs(3));
        }
        if end.is_none() {
            let passed = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            world.run_until(helio_units::Instant::from_nanos(passed));
        }
        for (rack, desk) in world.racks.iter_mut().zip(&mut desks) {
            desk.serve(rack);
        }
        std::thread::sleep(TICK);
    }
    world.report()
}

/// Where a master's clients queue, and those who wait for a slave's answer.
struct Desk {
    inbox: Inbox,
    waiting: HashMap<u32, Question>,
    ticket: u32,
}

impl Desk {
    fn new(inbox: Inbox) -> Self {
        Self {
            inbox,
            waiting: HashMap::new(),
            ticket: 0,
        }
    }

    fn serve(&mut self, rack: &mut Rack) {
        let mut answer = [0; helio_link::MAX_DATAGRAM];
        while let Some(question) = self.inbox.poll() {
            self.ticket = self.ticket.wrapping_add(1);
            match rack.handle_smp(self.ticket, &question.request, &mut answer) {
                0 => {
                    self.waiting.insert(self.ticket, question);
                }
                len => question.answer(&answer[..len]),
            }
        }
        while let Some((ticket, len)) = rack.poll_smp(&mut answer) {
            if let Some(question) = self.waiting.remove(&ticket) {
                question.answer(&answer[..len]);
            }
        }
        // Datagrams that deserve no answer do not pile up.
        self.waiting.retain(|ticket, _| rack.is_waiting(*ticket));
    }
}

/// The broker's process, started again whenever it dies.
struct Broker {
    address: SocketAddr,
    certs: std::path::PathBuf,
    child: Child,
    /// Ends when this process does, killed or not, and the child ends with it.
    _alive: Option<ChildStdin>,
    starts: Arc<AtomicU32>,
}

impl Broker {
    async fn start(certs: &Path) -> Result<Self> {
        // A free port; the child takes it a moment later.
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("there is no free port on the loopback")?;
        let address = probe.local_addr()?;
        drop(probe);
        let mut child = Self::spawn(address, certs)?;
        Ok(Self {
            // Waiting for the child would close it.
            _alive: child.stdin.take(),
            address,
            certs: certs.into(),
            child,
            starts: Arc::new(AtomicU32::new(1)),
        })
    }

    fn spawn(address: SocketAddr, certs: &Path) -> Result<Child> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        Command::new(program)
            .args(["broker", "--until-stdin-ends", "--listen"])
            .args([&address.to_string(), "--certs"])
            .arg(certs)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the broker's process did not start")
    }

    fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    async fn keep_alive(mut self) {
        loop {
            let ended = self.child.wait().await;
            tracing::warn!("the broker ended ({ended:?}); starting it again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            match Self::spawn(self.address, &self.certs) {
                Ok(mut child) => {
                    self._alive = child.stdin.take();
                    self.child = child;
                    self.starts.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => tracing::error!("{e:#}"),
            }
        }
    }
}

/// Largest resident size of this process so far, MB; `None` where the system does not tell.
fn memory_max_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kb: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kb / 1e3)
}

fn seen(cloud: &Shared) -> Vec<Seen> {
    let store = cloud.lock();
    let names = store.names();
    let each = names.into_iter().filter_map(|master| {
        let counts = store.counts(&master)?;
        Some(Seen { master, counts })
    });
    each.collect()
}

/// Waits until the subscriber has what the bridges took in, three seconds at most.
async fn settle(bridges: &[(String, watch::Receiver<Health>)], cloud: &Shared) {
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let done = bridges.iter().all(|(master, health)| {
            let taken = health.borrow().counts.taken;
            cloud
                .lock()
                .counts(master)
                .is_some_and(|c| c.missing == 0 && c.received >= taken)
        });
        if done {
            return;
        }
    }
}

fn say_started(args: &Args, started: &Started) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(started)?);
        return Ok(());
    }
    if let Some(page) = &started.page {
        println!("live page      {page}");
    }
    for (n, at) in (1..).zip(&started.masters) {
        println!("master {n}       smp+udp://{at}");
    }
    println!(
        "broker         mqtts://{} (TLS 1.3, certificates in {})",
        started.broker, started.certificates
    );
    println!("Ctrl-C ends it.");
    Ok(())
}

fn say_ended(args: &Args, ended: &Ended) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(ended)?);
        return Ok(());
    }
    print!("{}", ended.plant.to_text());
    for s in &ended.subscriber {
        let c = s.counts;
        println!(
            "{}: {} records at the subscriber, {} missing, {} lost",
            s.master, c.received, c.missing, c.lost
        );
    }
    if let Some(mb) = ended.memory_max_mb {
        println!(
            "memory at most {mb:.0} MB, broker started {} times",
            ended.broker_starts
        );
    }
    Ok(())
}
