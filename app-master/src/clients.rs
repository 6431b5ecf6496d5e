//! Between the core and the clients on the northbound UART.
//!
//! One answer is on its way at a time; a client that sends before it has its answer waits for
//! room, and asks again if it loses patience.

use crate::Core;
use helio_smp::serial::{Decoder, Lines, MAX_LINE};
use helio_smp::{MAX_DATAGRAM, Rc};
use zephyr_shell::{Errno, Management, Northbound, Peripherals, now};

/// All clients speak through one line, so one ticket does.
const TICKET: u32 = 1;

/// What is under way between clients and core.
pub struct Clients {
    decoder: Decoder<MAX_DATAGRAM>,
    answer: [u8; MAX_DATAGRAM],
}

impl Clients {
    /// Nothing under way.
    pub const fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            answer: [0; MAX_DATAGRAM],
        }
    }

    /// Answers what has come, and passes on what slaves have answered.
    // Not a part of `run`, whose stack lies under everything.
    #[inline(never)]
    pub fn serve(&mut self, parts: &mut Peripherals, master: &mut Core) {
        let Self { decoder, answer } = self;
        let mut bytes = [0; 64];
        loop {
            let count = parts.northbound.receive(&mut bytes);
            for octet in bytes.iter().take(count) {
                // A damaged datagram is dropped; its sender asks again.
                let Ok(Some(datagram)) = decoder.handle_octet(*octet) else {
                    continue;
                };
                let length = match master.is_for_device(datagram) {
                    true => device(&mut parts.management, datagram, answer),
                    false => None,
                };
                let length =
                    length.unwrap_or_else(|| master.handle_smp(now(), TICKET, datagram, answer));
                send(&mut parts.northbound, answer.get(..length));
            }
            if count < bytes.len() {
                break;
            }
        }
        let northbound = &mut parts.northbound;
        (parts.management).answer(|answer| send(northbound, Some(answer)));
        while let Some(due) = master.poll_smp(now(), answer) {
            send(&mut parts.northbound, answer.get(..due.length));
        }
    }
}

/// Hands a request to the device, whose answer comes later, or says that it is busy; `None` where
/// nobody answers for the device.
fn device(management: &mut Management, datagram: &[u8], answer: &mut [u8]) -> Option<usize> {
    match management.request(datagram) {
        Ok(()) => Some(0),
        Err(Errno::BUSY) => Some(match helio_smp::accept(datagram, answer) {
            Ok(request) => request.reply(answer).rc(Rc::Busy),
            Err(refusal) => refusal,
        }),
        Err(_) => None,
    }
}

fn send(line: &mut Northbound, datagram: Option<&[u8]>) {
    let Some(mut lines) = datagram.filter(|d| !d.is_empty()).and_then(Lines::new) else {
        return;
    };
    let mut text = [0; MAX_LINE];
    while let Some(length) = lines.next_line(&mut text) {
        // Without room the answer is cut short, which its check shows.
        if line.send(text.get(..length).unwrap_or(&[])).is_err() {
            return;
        }
    }
}
