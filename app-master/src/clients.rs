//! Between the core and the clients on the northbound UART and, where there is a network, over UDP.
//!
//! One answer is on its way at a time on the UART; a client that sends before it has its answer waits
//! for room, and asks again if it loses patience.

use crate::Core;
use helio_smp::serial::{Decoder, Lines, MAX_LINE};
use helio_smp::{MAX_DATAGRAM, Rc};
use zephyr_shell::{Errno, Management, Northbound, Peripherals, Udp, now};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// All clients of the UART speak through one line.
    Line,
    #[cfg(CONFIG_HELIO_NORTHBOUND_UDP)]
    Udp(zephyr_shell::UdpClient),
}

impl Client {
    /// Under which the core knows it.
    fn ticket(self) -> u32 {
        match self {
            Self::Line => 0,
            #[cfg(CONFIG_HELIO_NORTHBOUND_UDP)]
            Self::Udp(client) => client.0 + 1,
        }
    }

    fn of(ticket: u32) -> Self {
        match ticket {
            #[cfg(CONFIG_HELIO_NORTHBOUND_UDP)]
            1.. => Self::Udp(zephyr_shell::UdpClient(ticket - 1)),
            _ => Self::Line,
        }
    }
}

/// What is under way between clients and core.
pub struct Clients {
    decoder: Decoder<MAX_DATAGRAM>,
    answer: [u8; MAX_DATAGRAM],
    /// Whose request the device has.
    device: Client,
}

impl Clients {
    /// Nothing under way.
    pub const fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            answer: [0; MAX_DATAGRAM],
            device: Client::Line,
        }
    }

    /// Answers what has come, and passes on what slaves have answered.
    // Not a part of `run`, whose stack lies under everything.
    #[inline(never)]
    pub fn serve(&mut self, parts: &mut Peripherals, master: &mut Core) {
        let Self {
            decoder,
            answer,
            device,
        } = self;
        let Peripherals {
            northbound,
            udp,
            management,
            ..
        } = parts;
        let mut ask = |client: Client, datagram: &[u8], answer: &mut [u8]| {
            if master.is_for_device(datagram)
                && let Some(length) = ask_device(management, datagram, answer)
            {
                if length == 0 {
                    *device = client;
                }
                return length;
            }
            master.handle_smp(now(), client.ticket(), datagram, answer)
        };
        let mut bytes = [0; 64];
        loop {
            let count = northbound.receive(&mut bytes);
            for octet in bytes.iter().take(count) {
                // A damaged datagram is dropped; its sender asks again.
                let Ok(Some(datagram)) = decoder.handle_octet(*octet) else {
                    continue;
                };
                let length = ask(Client::Line, datagram, answer);
                send(northbound, udp, Client::Line, answer.get(..length));
            }
            if count < bytes.len() {
                break;
            }
        }
        #[cfg(CONFIG_HELIO_NORTHBOUND_UDP)]
        while udp.receive(|udp, client, datagram| {
            let length = ask(Client::Udp(client), datagram, answer);
            send(northbound, udp, Client::Udp(client), answer.get(..length));
        }) {}
        let asked = *device;
        management.answer(|answer| send(northbound, udp, asked, Some(answer)));
        while let Some(due) = master.poll_smp(now(), answer) {
            let client = Client::of(due.ticket);
            send(northbound, udp, client, answer.get(..due.length));
        }
    }
}

/// Hands a request to the device, whose answer comes later, or says that it is busy; `None` where
/// nobody answers for the device.
fn ask_device(management: &mut Management, datagram: &[u8], answer: &mut [u8]) -> Option<usize> {
    match management.request(datagram) {
        Ok(()) => Some(0),
        Err(Errno::BUSY) => Some(match helio_smp::accept(datagram, answer) {
            Ok(request) => request.reply(answer).rc(Rc::Busy),
            Err(refusal) => refusal,
        }),
        Err(_) => None,
    }
}

/// What the client's way does not take is lost, and it asks again.
fn send(line: &mut Northbound, udp: &mut Udp, to: Client, datagram: Option<&[u8]>) {
    let Some(datagram) = datagram.filter(|d| !d.is_empty()) else {
        return;
    };
    match to {
        Client::Line => send_lines(line, datagram),
        #[cfg(CONFIG_HELIO_NORTHBOUND_UDP)]
        Client::Udp(client) => {
            let _ = udp.send(client, datagram);
        }
    }
    #[cfg(not(CONFIG_HELIO_NORTHBOUND_UDP))]
    let _ = udp;
}

fn send_lines(line: &mut Northbound, datagram: &[u8]) {
    let Some(mut lines) = Lines::new(datagram) else {
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
