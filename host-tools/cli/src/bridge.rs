//! `helio bridge`: masters to an MQTT broker over TLS 1.3.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use helio_bridge::mqtt::{Backoff, Endpoint};
use helio_bridge::pki::Files;
use helio_bridge::topic::Topics;
use helio_bridge::{Config, Health};
use helio_link::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::BadInput;
use crate::broker::{interrupted, runtime};

/// Arguments of `helio bridge`.
#[derive(clap::Args)]
pub struct Args {
    /// A master as NAME=HOST:PORT (SMP over UDP); may be given several times
    #[arg(long, required = true, value_parser = master)]
    master: Vec<(String, String)>,
    /// Name of the place; part of every topic
    #[arg(long, default_value = "site")]
    site: String,
    /// Broker as HOST:PORT; the name must stand in its certificate
    #[arg(long, default_value = "localhost:8883", value_parser = host_port)]
    broker: (String, u16),
    /// Certificates of the authorities that sign brokers (PEM)
    #[arg(long)]
    ca: PathBuf,
    /// Own certificate (PEM)
    #[arg(long)]
    cert: PathBuf,
    /// Private key of the certificate (PEM)
    #[arg(long)]
    key: PathBuf,
    /// Records kept for each master while the broker cannot be reached
    #[arg(long, default_value_t = 20_000)]
    keep: usize,
    /// Milliseconds between questions to a master
    #[arg(long, default_value_t = 200)]
    poll_ms: u64,
}

fn master(text: &str) -> Result<(String, String), String> {
    let parts = text
        .split_once('=')
        .filter(|(name, to)| !name.is_empty() && to.contains(':'));
    let (name, to) = parts.ok_or("give NAME=HOST:PORT, for example rack-1=10.0.0.7:1337")?;
    Ok((name.into(), to.into()))
}

fn host_port(text: &str) -> Result<(String, u16), String> {
    let parts = text
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts
        .filter(|(host, _)| !host.is_empty())
        .ok_or("give HOST:PORT, for example localhost:8883")?;
    Ok((host.trim_matches(['[', ']']).into(), port))
}

/// Runs the command until it is interrupted.
pub fn run(args: Args) -> Result<()> {
    let files = Files {
        ca: args.ca,
        cert: args.cert,
        key: args.key,
    };
    let tls = files
        .load()
        .and_then(|c| c.client())
        .map_err(|e| BadInput::new(format!("{e:#}")))?;
    for (name, _) in &args.master {
        if Topics::new(&args.site, name).is_none() {
            let (site, what) = (
                &args.site,
                "is no part of a topic; use letters, digits and dashes",
            );
            return Err(BadInput::new(format!("--site {site} --master {name}: {what}")).into());
        }
    }
    let (host, port) = args.broker;
    runtime()?.block_on(async {
        let mut bridges = JoinSet::new();
        for (name, to) in args.master {
            let client = Client::connect_udp(&to).await.map_err(|e| {
                BadInput::new(format!(
                    "--master {name}={to}: {e}; give a host that can be resolved and a UDP port"
                ))
            })?;
            let config = Config {
                site: args.site.clone(),
                master: name.clone(),
                broker: Endpoint {
                    host: host.clone(),
                    port,
                    tls: tls.clone(),
                    backoff: Backoff::default(),
                },
                keep: args.keep,
                poll: Duration::from_millis(args.poll_ms),
            };
            let (tell, health) = watch::channel(Health::default());
            bridges.spawn(helio_bridge::run(config, client, tell));
            bridges.spawn(report(name, health));
        }
        tokio::select! {
            Some(done) = bridges.join_next() => done?,
            done = interrupted() => done,
        }
    })
}

/// Says when a connection comes or goes.
async fn report(name: String, mut health: watch::Receiver<Health>) -> Result<()> {
    let mut before = (false, false);
    while health.changed().await.is_ok() {
        let now = *health.borrow_and_update();
        if (now.online, now.master) != before {
            before = (now.online, now.master);
            let up = |yes| if yes { "reached" } else { "not reached" };
            println!(
                "{name}: master {}, broker {}, {} records kept",
                up(now.master),
                up(now.online),
                now.kept
            );
        }
    }
    Ok(())
}
