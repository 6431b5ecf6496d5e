//! The C half, as `c/helio_shell.h` declares it.

unsafe extern "C" {
    pub fn helio_now_ns() -> u64;
    pub fn helio_wait_until(deadline_ns: u64, spin: u32);
    pub fn helio_reboot();
    pub fn helio_session() -> u32;

    pub fn helio_uid() -> u64;

    pub fn helio_node_init() -> i32;
    pub fn helio_gate_set(on: u32) -> i32;
    pub fn helio_balance_set(mask: u32) -> i32;
    pub fn helio_luminaires_set(mask: u32) -> i32;
    pub fn helio_watchdog_start(timeout_ms: u32) -> i32;
    pub fn helio_watchdog_feed() -> i32;

    pub fn helio_rs485_start(bus: u32, baud: u32) -> i32;
    pub fn helio_rs485_read(
        bus: u32,
        to: *mut u8,
        size: usize,
        end_ns: *mut u64,
        is_break: *mut u32,
    ) -> i32;
    pub fn helio_rs485_send(bus: u32, bytes: *const u8, count: usize) -> i32;
    pub fn helio_rs485_send_break(bus: u32, microseconds: u32) -> i32;
    pub fn helio_rs485_lost(bus: u32) -> u32;

    pub fn helio_i2c_start() -> i32;
    pub fn helio_i2c_transfer(
        address: u32,
        parts: *const *mut u8,
        sizes: *const usize,
        count: usize,
        reads: u32,
    ) -> i32;

    pub fn helio_adc_start() -> i32;
    pub fn helio_adc_read_mv(mv: *mut i32) -> i32;

    pub fn helio_sim_over_voltage() -> u32;

    pub fn helio_northbound_start() -> i32;
    pub fn helio_northbound_read(to: *mut u8, size: usize) -> i32;
    pub fn helio_northbound_write(bytes: *const u8, count: usize) -> i32;

    pub fn helio_udp_start() -> i32;
    pub fn helio_udp_receive(from: *mut *const u8, client: *mut u32) -> i32;
    pub fn helio_udp_done();
    pub fn helio_udp_send(client: u32, bytes: *const u8, count: usize) -> i32;

    pub fn helio_management_request(datagram: *const u8, count: usize) -> i32;
    pub fn helio_management_answer(from: *mut *const u8) -> i32;
    pub fn helio_management_done();

    pub fn helio_store_start() -> i32;
    pub fn helio_store_record(from: *mut *const u8) -> i32;
    pub fn helio_store_name(to: *mut u8, size: usize) -> i32;
    pub fn helio_store_open(to: *mut *mut u8) -> i32;
    pub fn helio_store_close(count: usize) -> i32;
    pub fn helio_store_failed() -> u32;

    pub fn helio_can_start(
        bus: u32,
        bitrate: u32,
        fd: u32,
        standard_id: u32,
        standard_mask: u32,
    ) -> i32;
    pub fn helio_can_send(
        bus: u32,
        mailbox: u32,
        id: u32,
        flags: u32,
        data: *const u8,
        count: usize,
    ) -> i32;
    pub fn helio_can_mailboxes(bus: u32) -> u32;
    pub fn helio_can_receive(
        bus: u32,
        id: *mut u32,
        flags: *mut u32,
        data: *mut u8,
        at_ns: *mut u64,
    ) -> i32;
    pub fn helio_can_tend(bus: u32) -> i32;
    pub fn helio_can_state(bus: u32) -> u32;
    pub fn helio_can_lost(bus: u32) -> u32;
    pub fn helio_can_recoveries(bus: u32) -> u32;
}
