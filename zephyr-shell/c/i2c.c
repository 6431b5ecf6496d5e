/* SPDX-License-Identifier: Apache-2.0 */
/* The I2C bus of the cell monitor that the heliograph,node names. */
#include "helio_shell.h"

#include <zephyr/drivers/i2c.h>
#include <zephyr/kernel.h>

BUILD_ASSERT(DT_NODE_HAS_PROP(HELIO_NODE, cell_monitor),
	     "CONFIG_HELIO_CELLS_BQ76952=y, but the heliograph,node has no `cell-monitor`. Point it to "
	     "a ti,bq76952 on an I2C bus, or set CONFIG_HELIO_CELLS_SIMULATED to play one.");

#define PARTS 8

static const struct i2c_dt_spec chip = I2C_DT_SPEC_GET(DT_PHANDLE(HELIO_NODE, cell_monitor));

/* Address of the cell monitor, or -ENODEV while its bus is not there. */
int helio_i2c_start(void)
{
	return i2c_is_ready_dt(&chip) ? chip.addr : -ENODEV;
}

/* One transaction of `count` parts; bit n of `reads` says that part n is read, not written. */
int helio_i2c_transfer(uint32_t address, uint8_t *const *parts, const size_t *sizes, size_t count,
		       uint32_t reads)
{
	struct i2c_msg messages[PARTS];

	if (count == 0 || count > PARTS) {
		return -EINVAL;
	}
	for (size_t i = 0; i < count; i++) {
		bool read = (reads >> i) & 1;
		bool turns = i > 0 && read != ((reads >> (i - 1)) & 1);

		messages[i] = (struct i2c_msg){
			.buf = parts[i],
			.len = sizes[i],
			.flags = (read ? I2C_MSG_READ : I2C_MSG_WRITE) |
				 (turns ? I2C_MSG_RESTART : 0),
		};
	}
	messages[count - 1].flags |= I2C_MSG_STOP;
	return i2c_transfer(chip.bus, messages, count, address);
}
