/* SPDX-License-Identifier: Apache-2.0 */
/* The ADC channel that the heliograph,node names. */
#include "helio_shell.h"

#include <zephyr/drivers/adc.h>
#include <zephyr/kernel.h>

BUILD_ASSERT(DT_NODE_HAS_PROP(HELIO_NODE, io_channels),
	     "CONFIG_HELIO_ADC=y, but the heliograph,node has no `io-channels`. Name the ADC channel of "
	     "the current sensor there.");

static const struct adc_dt_spec channel = ADC_DT_SPEC_GET(HELIO_NODE);

int helio_adc_start(void)
{
	return adc_is_ready_dt(&channel) ? adc_channel_setup_dt(&channel) : -ENODEV;
}

/* Millivolts at the pin, by the channel's gain and reference. */
int helio_adc_read_mv(int32_t *mv)
{
	int16_t raw = 0;
	struct adc_sequence sequence = {.buffer = &raw, .buffer_size = sizeof(raw)};
	int rc = adc_sequence_init_dt(&channel, &sequence);

	rc = rc != 0 ? rc : adc_read_dt(&channel, &sequence);
	if (rc != 0) {
		return rc;
	}
	/* Unsigned results of 16 bits would look negative. */
	*mv = channel.channel_cfg.differential ? raw : (uint16_t)raw;
	return adc_raw_to_millivolts_dt(&channel, mv);
}
