/* SPDX-License-Identifier: Apache-2.0 */
#include <zephyr/sys/byteorder.h>
#include <zephyr/ztest.h>

#include "bq76952_emul.h"
#include "helio_shell.h"

static const struct emul *const chip = EMUL_DT_GET(DT_NODELABEL(cells));

static int ask(uint8_t command, uint8_t *to, size_t count)
{
	uint8_t *const parts[] = {&command, to};
	const size_t sizes[] = {1, count};

	return helio_i2c_transfer(0x08, parts, sizes, 2, 0x2);
}

static int tell(uint8_t *bytes, size_t count)
{
	return helio_i2c_transfer(0x08, &bytes, &count, 1, 0);
}

static void present(void *unused)
{
	ARG_UNUSED(unused);
	bq76952_emul_present(chip, 1);
}

ZTEST_SUITE(i2c, NULL, NULL, present, NULL, NULL);

ZTEST(i2c, test_the_devicetree_says_where_the_chip_is)
{
	zassert_equal(helio_i2c_start(), 0x08);
}

ZTEST(i2c, test_a_write_and_a_read_are_one_transaction)
{
	uint8_t got[4];

	bq76952_emul_put(chip, 0x14, 3711);
	bq76952_emul_put(chip, 0x16, -2);
	zassert_ok(ask(0x14, got, sizeof(got)));
	zassert_equal(sys_get_le16(got), 3711);
	zassert_equal((int16_t)sys_get_le16(got + 2), -2);
}

ZTEST(i2c, test_a_chip_that_is_not_there_is_an_error)
{
	uint8_t got[2];

	bq76952_emul_present(chip, 0);
	zassert_equal(ask(0x14, got, sizeof(got)), -EIO);
}

ZTEST(i2c, test_too_many_parts_are_refused)
{
	uint8_t byte = 0;
	uint8_t *parts[9];
	size_t sizes[9];

	for (int i = 0; i < 9; i++) {
		parts[i] = &byte;
		sizes[i] = 1;
	}
	zassert_equal(helio_i2c_transfer(0x08, parts, sizes, 9, 0), -EINVAL);
	zassert_equal(helio_i2c_transfer(0x08, parts, sizes, 0, 0), -EINVAL);
}

ZTEST(i2c, test_the_chip_bleeds_only_what_fits_its_checksum)
{
	uint8_t cells[] = {0x3e, 0x83, 0x00, 0x05, 0x80};
	uint8_t wrong[] = {0x60, 0x00, 6};
	uint8_t right[] = {0x60, (uint8_t)~(0x83 + 0x05 + 0x80), 6};

	zassert_ok(tell(cells, sizeof(cells)));
	zassert_ok(tell(wrong, sizeof(wrong)));
	zassert_equal(bq76952_emul_bled(chip), 0);
	zassert_ok(tell(right, sizeof(right)));
	zassert_equal(bq76952_emul_bled(chip), 0x8005);
}

ZTEST(i2c, test_the_chip_knows_its_device_number)
{
	uint8_t subcommand[] = {0x3e, 0x01, 0x00};
	uint8_t got[2];

	zassert_ok(tell(subcommand, sizeof(subcommand)));
	zassert_ok(ask(0x40, got, sizeof(got)));
	zassert_equal(sys_get_le16(got), 0x7695);
	zassert_ok(ask(0x60, got, sizeof(got)));
	zassert_equal(got[0], (uint8_t)~(0x01 + 0x95 + 0x76));
}
