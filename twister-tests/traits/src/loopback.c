/* SPDX-License-Identifier: Apache-2.0 */
/* Lets the controller hear itself, which the shell has put on the bus by then. */
#include <zephyr/drivers/can.h>
#include <zephyr/kernel.h>

static void loop_back(void)
{
	const struct device *can = DEVICE_DT_GET(DT_NODELABEL(controller));

	can_stop(can);
	can_set_mode(can, CAN_MODE_LOOPBACK);
	can_start(can);
}

K_THREAD_DEFINE(looper, 1024, loop_back, NULL, NULL, NULL, 0, 0, 50);
