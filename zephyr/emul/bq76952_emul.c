/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TI BQ76952 on emulated I2C: registers behind an address that counts up, and subcommands.
 *
 *   write 0x3e, 0x3f (subcommand)  --> answer at 0x40.., checksum at 0x60, length at 0x61
 *   write 0x40.. then 0x60, 0x61   --> the subcommand is carried out if checksum and length fit
 *
 * From the technical reference manual (TI, SLUUBY2), 4.1 and 4.3, and as delivered: no CRC, 1 mA and
 * 1 mV, temperatures in 0.1 K.
 */
#define DT_DRV_COMPAT ti_bq76952

#include "bq76952_emul.h"

#include <errno.h>

#include <zephyr/device.h>
#include <zephyr/drivers/i2c.h>
#include <zephyr/drivers/i2c_emul.h>
#include <zephyr/sys/byteorder.h>

#define CELL_1          0x14
#define CC2_CURRENT     0x3a
#define SUBCOMMAND      0x3e
#define BUFFER          0x40
#define CHECKSUM        0x60
#define LENGTH          0x61
#define TS1             0x70
#define DEVICE_NUMBER   0x0001
#define CB_ACTIVE_CELLS 0x0083

struct chip {
	uint8_t registers[256];
	uint8_t at;
	uint16_t bled;
	bool absent;
};

/* Over subcommand and data, as the manual says: the complement of the sum of all bytes. */
static uint8_t checksum(const struct chip *c, size_t data)
{
	uint8_t sum = c->registers[SUBCOMMAND] + c->registers[SUBCOMMAND + 1];

	for (size_t i = 0; i < data; i++) {
		sum += c->registers[BUFFER + i];
	}
	return ~sum;
}

static void answer(struct chip *c, uint16_t value)
{
	sys_put_le16(value, &c->registers[BUFFER]);
	c->registers[CHECKSUM] = checksum(c, 2);
	/* Subcommand, data, checksum and length itself. */
	c->registers[LENGTH] = 2 + 2 + 2;
}

static void asked(struct chip *c)
{
	switch (sys_get_le16(&c->registers[SUBCOMMAND])) {
	case DEVICE_NUMBER:
		answer(c, 0x7695);
		break;
	case CB_ACTIVE_CELLS:
		answer(c, c->bled);
		break;
	default:
		break;
	}
}

static void committed(struct chip *c)
{
	uint8_t length = c->registers[LENGTH];

	if (length < 4 || length > 36 || c->registers[CHECKSUM] != checksum(c, length - 4)) {
		return;
	}
	if (sys_get_le16(&c->registers[SUBCOMMAND]) == CB_ACTIVE_CELLS && length == 6) {
		c->bled = sys_get_le16(&c->registers[BUFFER]);
	}
}

static void written(struct chip *c, const struct i2c_msg *msg)
{
	uint8_t first, last;

	if (msg->len == 0) {
		return;
	}
	first = msg->buf[0];
	last = first + msg->len - 2;
	c->at = first;
	for (uint32_t i = 1; i < msg->len; i++) {
		c->registers[c->at++] = msg->buf[i];
	}
	if (msg->len == 1) {
		return;
	}
	/* Data that follow a subcommand are for a write: they wait for checksum and length. */
	if (first <= SUBCOMMAND + 1 && last == SUBCOMMAND + 1) {
		asked(c);
	}
	if (first <= LENGTH && last >= LENGTH) {
		committed(c);
	}
}

static int transfer(const struct emul *target, struct i2c_msg *msgs, int count, int address)
{
	struct chip *c = target->data;

	ARG_UNUSED(address);
	if (c->absent) {
		return -EIO;
	}
	for (int i = 0; i < count; i++) {
		if (msgs[i].flags & I2C_MSG_READ) {
			for (uint32_t n = 0; n < msgs[i].len; n++) {
				msgs[i].buf[n] = c->registers[c->at++];
			}
		} else {
			written(c, &msgs[i]);
		}
	}
	return 0;
}

static const struct i2c_emul_api api = {.transfer = transfer};

void bq76952_emul_put(const struct emul *chip, uint8_t command, int16_t value)
{
	struct chip *c = chip->data;

	sys_put_le16(value, &c->registers[command]);
}

uint16_t bq76952_emul_bled(const struct emul *chip)
{
	return ((struct chip *)chip->data)->bled;
}

void bq76952_emul_present(const struct emul *chip, int present)
{
	((struct chip *)chip->data)->absent = !present;
}

/* Sixteen cells, each a little higher than the one below, at 25 °C and without load. */
static int init(const struct emul *chip, const struct device *parent)
{
	ARG_UNUSED(parent);
	for (int n = 0; n < 16; n++) {
		bq76952_emul_put(chip, CELL_1 + 2 * n, 3600 + 10 * n);
	}
	for (int n = 0; n < 3; n++) {
		bq76952_emul_put(chip, TS1 + 2 * n, 2982 + 10 * n);
	}
	bq76952_emul_put(chip, CC2_CURRENT, 0);
	return 0;
}

#define CHIP(inst)                                                                                 \
	static struct chip chip_##inst;                                                            \
	DEVICE_DT_INST_DEFINE(inst, NULL, NULL, NULL, NULL, POST_KERNEL, 99, NULL);                \
	EMUL_DT_INST_DEFINE(inst, init, &chip_##inst, NULL, &api, NULL);

DT_INST_FOREACH_STATUS_OKAY(CHIP)
