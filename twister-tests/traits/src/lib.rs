//! RS485, I2C and CAN of zephyr-shell as code sees them that knows the embedded traits and nothing else,
//! over Zephyr's emulated UART and chip or its loopback controller.
#![no_std]
#![deny(unsafe_code)]

use zephyr::printkln;
use zephyr_shell::Peripherals;

#[cfg(CONFIG_HELIO_BUS_RS485)]
fn exercise(mut parts: Peripherals) -> Result<&'static str, &'static str> {
    for line in &mut parts.rs485 {
        line.start(1_000_000).map_err(|_| "no line")?;
        echo(line)?;
    }
    let mut i2c = parts.i2c.ok_or("no I2C")?;
    let address = i2c.start().map_err(|_| "no chip in the devicetree")?;
    chip(&mut i2c, address)?;
    Ok("embedded-io and embedded-hal hold")
}

/// More than one call of `write` takes, through a buffer that is smaller than what comes.
#[cfg(CONFIG_HELIO_BUS_RS485)]
fn echo<T: embedded_io::Read + embedded_io::Write>(line: &mut T) -> Result<(), &'static str> {
    let sent: [u8; 300] = core::array::from_fn(|n| n as u8 | 1);
    let mut heard = [0; 300];
    for (to, from) in heard.chunks_mut(100).zip(sent.chunks(100)) {
        line.write_all(from).map_err(|_| "the line does not send")?;
        line.flush().map_err(|_| "the line does not send it all")?;
        for part in to.chunks_mut(30) {
            line.read_exact(part)
                .map_err(|_| "the line does not hear")?;
        }
    }
    if heard != sent {
        return Err("something else was heard than was sent");
    }
    // By the trait nothing is asked of nobody: both return at once.
    match (line.write(&[]), line.read(&mut [])) {
        (Ok(0), Ok(0)) => Ok(()),
        _ => Err("nothing is sent or heard as something"),
    }
}

/// The chip's device number: subcommand 0x0001, its answer from 0x40 on (BQ76952 technical reference manual, 12.2).
#[cfg(CONFIG_HELIO_BUS_RS485)]
fn chip<B: embedded_hal::i2c::I2c>(bus: &mut B, address: u8) -> Result<(), &'static str> {
    use embedded_hal::i2c::{Error, ErrorKind};
    let mut number = [0; 2];
    bus.write(address, &[0x3e, 0x01, 0x00])
        .map_err(|_| "the chip takes no command")?;
    bus.write_read(address, &[0x40], &mut number)
        .map_err(|_| "the chip does not answer")?;
    if u16::from_le_bytes(number) != 0x7695 {
        return Err("it is another chip");
    }
    match bus.write(address + 1, &[0]).map_err(|e| e.kind()) {
        Err(ErrorKind::NoAcknowledge(_)) => Ok(()),
        _ => Err("a chip that is not there has acknowledged"),
    }
}

#[cfg(CONFIG_HELIO_BUS_CAN)]
fn exercise(mut parts: Peripherals) -> Result<&'static str, &'static str> {
    use helio_units::Duration;
    let [can] = &mut parts.can;
    can.start(1_000_000, false, (0, 0))
        .map_err(|_| "no controller")?;
    // loopback.c is done then.
    zephyr_shell::wait_until(zephyr_shell::now() + Duration::from_millis(200), false);
    swap(can)?;
    Ok("embedded-can holds")
}

/// Frames of either kind of identifier come as they went, and in order.
#[cfg(CONFIG_HELIO_BUS_CAN)]
fn swap<C: embedded_can::blocking::Can>(can: &mut C) -> Result<(), &'static str> {
    use embedded_can::{ExtendedId, Frame, Id, StandardId};
    let standard = StandardId::new(0x123).ok_or("no identifier")?;
    let extended = ExtendedId::new(0x1234_5678).ok_or("no identifier")?;
    let ids: [Id; 2] = [standard.into(), extended.into()];
    for (id, data) in ids.into_iter().zip([&b"12345678"[..], b""]) {
        let frame = C::Frame::new(id, data).ok_or("8 bytes are no frame")?;
        can.transmit(&frame).map_err(|_| "a frame is not sent")?;
        let heard = can.receive().map_err(|_| "no frame is heard")?;
        if heard.id() != id || heard.data() != data || heard.dlc() != data.len() {
            return Err("another frame is heard than was sent");
        }
        if heard.is_extended() != matches!(id, Id::Extended(_)) || heard.is_remote_frame() {
            return Err("it is of another kind");
        }
    }
    // Two in a row: the second waits for the first.
    for data in [b"1", b"2"] {
        let frame = C::Frame::new(standard, data).ok_or("1 byte is no frame")?;
        can.transmit(&frame).map_err(|_| "a frame is not sent")?;
    }
    for data in [b"1", b"2"] {
        let heard = can.receive().map_err(|_| "no frame is heard")?;
        if heard.data() != data {
            return Err("frames overtake each other");
        }
    }
    if C::Frame::new(standard, &[0; 9]).is_some() {
        return Err("9 bytes are a frame");
    }
    match C::Frame::new_remote(standard, 0) {
        Some(_) => Err("the bus has remote frames"),
        None => Ok(()),
    }
}

/// Called by zephyr-lang-rust's `main`.
#[allow(
    unsafe_code,
    reason = "the symbol that zephyr-lang-rust calls, defined once"
)]
#[unsafe(no_mangle)]
extern "C" fn rust_main() {
    let parts = Peripherals::take().ok_or("started twice");
    let parts = parts.and_then(|p| p.map_err(|_| "an output does not start"));
    match parts.and_then(exercise) {
        Ok(done) => printkln!("traits: {}", done),
        Err(reason) => printkln!("traits: {}", reason),
    }
}
