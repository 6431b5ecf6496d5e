/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The border between zephyr-shell's Rust and Zephyr's drivers.
 *
 * Only integers and pointers to bytes cross it. Times are nanoseconds since boot. Errors are
 * negative errno values. src/raw.rs repeats these lines in Rust.
 */
#ifndef HELIO_SHELL_H_
#define HELIO_SHELL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <zephyr/devicetree.h>

#define HELIO_NODE DT_COMPAT_GET_ANY_STATUS_OKAY(heliograph_node)

/* Buses of the node. What rs485.c and can.c do for one takes its number, less than this, first. */
#define HELIO_BUSES DT_PROP_LEN(HELIO_NODE, bus)

/* clock.c */
uint64_t helio_now_ns(void);
void helio_wait_until(uint64_t deadline_ns, uint32_t spin);
void helio_wake(void);
void helio_reboot(void);
uint32_t helio_session(void);

/* uid.c */
uint64_t helio_uid(void);

/* node.c */
int helio_node_init(void);
int helio_gate_set(uint32_t on);
int helio_balance_set(uint32_t mask);
int helio_luminaires_set(uint32_t mask);
int helio_watchdog_start(uint32_t timeout_ms);
int helio_watchdog_feed(void);

/* rs485.c */
int helio_rs485_start(uint32_t bus, uint32_t baud);
int helio_rs485_read(uint32_t bus, uint8_t *to, size_t size, uint64_t *end_ns, uint32_t *is_break);
int helio_rs485_send(uint32_t bus, const uint8_t *bytes, size_t count);
int helio_rs485_send_break(uint32_t bus, uint32_t microseconds);
uint32_t helio_rs485_lost(uint32_t bus);

/* can.c */
/* Received frames that wait for the main loop: 5 ms of a full bus or more. One of FD is large. */
#define HELIO_CAN_RING (IS_ENABLED(CONFIG_CAN_FD_MODE) ? 32 : 64)
int helio_can_start(uint32_t bus, uint32_t bitrate, uint32_t fd, uint32_t standard_id,
		    uint32_t standard_mask);
int helio_can_send(uint32_t bus, uint32_t mailbox, uint32_t id, uint32_t flags,
		   const uint8_t *data, size_t count);
uint32_t helio_can_mailboxes(uint32_t bus);
int helio_can_receive(uint32_t bus, uint32_t *id, uint32_t *flags, uint8_t *data, uint64_t *at_ns);
int helio_can_tend(uint32_t bus);
uint32_t helio_can_state(uint32_t bus);
uint32_t helio_can_lost(uint32_t bus);
uint32_t helio_can_recoveries(uint32_t bus);

/* i2c.c */
int helio_i2c_start(void);
int helio_i2c_transfer(uint32_t address, uint8_t *const *parts, const size_t *sizes, size_t count,
		       uint32_t reads);

/* adc.c */
int helio_adc_start(void);
int helio_adc_read_mv(int32_t *mv);

/* sim.c */
uint32_t helio_sim_over_voltage(void);

/* northbound.c */
int helio_northbound_start(void);
int helio_northbound_read(uint8_t *to, size_t size);
int helio_northbound_write(const uint8_t *bytes, size_t count);

/* udp.c */
int helio_udp_start(void);
int helio_udp_receive(const uint8_t **from, uint32_t *client);
void helio_udp_done(void);
int helio_udp_send(uint32_t client, const uint8_t *bytes, size_t count);

/* management.c */
int helio_management_request(const uint8_t *datagram, size_t count);
int helio_management_answer(const uint8_t **from);
void helio_management_done(void);

/* store.c */
#define HELIO_NAME_SIZE 24

int helio_store_start(void);
int helio_store_record(const uint8_t **from);
int helio_store_name(uint8_t *to, size_t size);
int helio_store_open(uint8_t **to);
int helio_store_close(size_t count);
uint32_t helio_store_failed(void);

#endif
