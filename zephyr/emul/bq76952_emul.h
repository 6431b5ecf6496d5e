/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HELIOGRAPH_BQ76952_EMUL_H_
#define HELIOGRAPH_BQ76952_EMUL_H_

#include <stdint.h>

#include <zephyr/drivers/emul.h>

/* A direct command's value, 16 bits; for example 0x14 for the voltage of cell 1 in mV. */
void bq76952_emul_put(const struct emul *chip, uint8_t command, int16_t value);
/* Cells that are bled now, bit 0 is cell 1. */
uint16_t bq76952_emul_bled(const struct emul *chip);
/* Whether it acknowledges its address. */
void bq76952_emul_present(const struct emul *chip, int present);

#endif
