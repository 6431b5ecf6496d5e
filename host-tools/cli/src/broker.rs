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
    /// End when standard input does: whoever holds the other end of the pipe has ended, however that came
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
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
            done = interrupted() => done,
            () = stdin_ends(), if args.until_stdin_ends => Ok(()),
        }
    })
}

/// Waits for Ctrl-C, or for what `kill` and service managers send.
pub async fn interrupted() -> Result<()> {
    interruption()?.await
}

/// [`interrupted`], heeded from this call on and not only when it is awaited.
pub fn interruption() -> Result<impl Future<Output = Result<()>>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminated = signal(SignalKind::terminate())?;
        let mut stopped = signal(SignalKind::interrupt())?;
        Ok(async move {
            tokio::select! {
                _ = stopped.recv() => {}
                _ = terminated.recv() => {}
            }
            Ok(())
        })
    }
    #[cfg(not(unix))]
    Ok(async { Ok(tokio::signal::ctrl_c().await?) })
}

/// Waits on a thread of its own: a read of standard input cannot be cancelled, and a runtime waits for its own threads.
async fn stdin_ends() {
    let (tell, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = tell.send(());
    });
    let _ = ended.await;
}

/// Two workers are enough for everything that the host tools do, and cost little memory.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the asynchronous runtime did not start")
}
