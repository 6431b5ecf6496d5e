//! `helio broker`: the demonstration's MQTT broker as a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use helio_bridge::broker::Broker;
use helio_bridge::pki::{Demo, Files};

use crate::BadInput;

/// Arguments of `helio broker`.
#[derive(clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8883")]
    listen: SocketAddr,
    /// Folder with ca.pem, broker.pem and broker.key; made with demonstration certificates if it is not there
    #[arg(long)]
    certs: PathBuf,
}

/// Runs the command until it is interrupted.
pub fn run(args: Args) -> Result<()> {
    if !args.certs.exists() {
        Demo::new()?.write(&args.certs)?;
        eprintln!("demonstration certificates are in {}", args.certs.display());
    }
    let credentials = Files::of(&args.certs, "broker")
        .load()
        .map_err(|e| BadInput::new(format!("{e:#}")))?;
    runtime()?.block_on(async {
        let broker = Broker::bind(args.listen, &credentials).await?;
        println!(
            "mqtts://{} (TLS 1.3, client certificates of {})",
            broker.local_addr()?,
            args.certs.display()
        );
        tokio::select! {
            done = broker.run() => done,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

/// Two workers are enough for everything that the host tools do, and cost little memory.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the asynchronous runtime did not start")
}
