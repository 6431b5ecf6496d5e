/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include <zephyr/settings/settings.h>
#include <zephyr/ztest.h>

#include "helio_shell.h"

static void *setup(void)
{
	zassert_ok(helio_store_start());
	return NULL;
}

ZTEST_SUITE(store, NULL, setup, NULL, NULL, NULL);

static void keep(const char *what)
{
	uint8_t *to;

	zassert_true(helio_store_open(&to) >= (int)strlen(what));
	memcpy(to, what, strlen(what));
	zassert_ok(helio_store_close(strlen(what)));
}

static void expect(const char *what)
{
	const uint8_t *from;
	uint8_t *to;
	int size = helio_store_open(&to);

	zassert_true(size > 0);
	/* What is still in memory proves nothing. */
	memset(to, 0, size);
	zassert_ok(helio_store_start());
	zassert_equal(helio_store_record(&from), (int)strlen(what));
	zassert_mem_equal(from, what, strlen(what));
}

ZTEST(store, test_the_newest_record_is_there_after_a_start)
{
	keep("first");
	k_sleep(K_MSEC(100));
	expect("first");
	keep("second and longer");
	k_sleep(K_MSEC(100));
	expect("second and longer");
	zassert_equal(helio_store_failed(), 0);
}

ZTEST(store, test_while_a_record_is_written_none_is_taken)
{
	uint8_t *to;

	keep("under way");
	zassert_equal(helio_store_open(&to), -EBUSY);
	k_sleep(K_MSEC(100));
	expect("under way");
}

ZTEST(store, test_a_client_cannot_forge_the_record)
{
	keep("true");
	k_sleep(K_MSEC(100));
	zassert_true(settings_runtime_set("helio/record", "false", 5) < 0);
	expect("true");
}

ZTEST(store, test_a_name_that_a_client_saves_is_there_after_a_start)
{
	uint8_t name[HELIO_NAME_SIZE];
	char told[32];

	zassert_ok(settings_runtime_set("helio/name", "rack 7", 6));
	zassert_equal(settings_runtime_get("helio/name", told, sizeof(told)), 6);
	zassert_ok(settings_save());
	zassert_ok(settings_runtime_set("helio/name", "unsaved", 7));
	zassert_ok(helio_store_start());
	zassert_equal(helio_store_name(name, sizeof(name)), 6);
	zassert_mem_equal(name, "rack 7", 6);
}

ZTEST(store, test_too_long_a_name_is_refused)
{
	char name[HELIO_NAME_SIZE + 1];

	memset(name, 'x', sizeof(name));
	zassert_equal(settings_runtime_set("helio/name", name, sizeof(name)), -EINVAL);
}
