//! Server loops: datagrams in from UDP or a serial line, answers out.

use std::io;

use helio_smp::MAX_DATAGRAM;
use helio_smp::serial::{Decoder, Lines, MAX_LINE};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::Northbound;

/// Serves until the core has gone or the socket fails. Clients do not wait for one another.
pub async fn serve_udp(socket: UdpSocket, core: Northbound) -> io::Result<()> {
    let socket = std::sync::Arc::new(socket);
    let mut answering = JoinSet::new();
    // What is longer comes cut off, which its header gives away.
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let (n, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received?,
            Some(done) = answering.join_next() => match done {
                Ok(Err(crate::northbound::Closed)) => return Ok(()),
                _ => continue,
            },
        };
        let request = buffer[..n].to_vec();
        let (socket, core) = (socket.clone(), core.clone());
        answering.spawn(async move {
            let answer = core.ask(&request).await?;
            if !answer.is_empty()
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!("answer to {from} not sent: {error}");
            }
            Ok(())
        });
    }
}

/// Serves one line, one request after the other, until it closes or the core has gone.
pub async fn serve_serial<S>(mut line: S, core: Northbound) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut decoder = Box::new(Decoder::<MAX_DATAGRAM>::new());
    let mut buffer = [0; 512];
    loop {
        let n = line.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        for octet in &buffer[..n] {
            let answer = match decoder.handle_octet(*octet) {
                Ok(None) => continue,
                Ok(Some(request)) => core.ask(request).await,
                Err(error) => {
                    tracing::debug!("packet on the serial line dropped: {error:?}");
                    continue;
                }
            };
            match answer {
                Ok(answer) if answer.is_empty() => {}
                Ok(answer) => line.write_all(&to_lines(&answer)).await?,
                Err(crate::northbound::Closed) => return Ok(()),
            }
        }
    }
}

/// A datagram as it goes over a serial line; empty if it is too long for that.
pub(crate) fn to_lines(datagram: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(mut lines) = Lines::new(datagram) {
        let mut out = [0; MAX_LINE];
        while let Some(n) = lines.next_line(&mut out) {
            text.extend_from_slice(&out[..n]);
        }
    }
    text
}
