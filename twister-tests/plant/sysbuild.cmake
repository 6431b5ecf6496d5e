# SPDX-License-Identifier: Apache-2.0
# Master and slave, each with what the tests ask for: PLANT_CAN=y for CAN; on native_sim also a slave
# whose cells are measured by an emulated BQ76952.

set(apps ${APP_DIR}/../..)
set(conf ${APP_DIR}/firmware.conf)
set(overlay)
if(PLANT_CAN)
  list(APPEND conf can.conf)
  list(APPEND overlay can.overlay)
elseif("${BOARD}" STREQUAL "native_sim")
  set(chip_EXTRA_CONF_FILE "${conf};bq76952.conf" CACHE INTERNAL "")
  set(chip_EXTRA_DTC_OVERLAY_FILE bq76952.overlay CACHE INTERNAL "")
  ExternalZephyrProject_Add(APPLICATION chip SOURCE_DIR ${apps}/app-slave)
endif()
if("${BOARD}" STREQUAL "mps2")
  list(APPEND conf ${APP_DIR}/qemu.conf)
endif()
foreach(firmware master slave)
  set(${firmware}_EXTRA_CONF_FILE "${conf}" CACHE INTERNAL "")
  set(${firmware}_EXTRA_DTC_OVERLAY_FILE "${overlay}" CACHE INTERNAL "")
  ExternalZephyrProject_Add(APPLICATION ${firmware} SOURCE_DIR ${apps}/app-${firmware})
endforeach()
