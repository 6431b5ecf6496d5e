# SPDX-License-Identifier: Apache-2.0
# Master and slave, each with what the tests ask for: PLANT_CAN=y for CAN, PLANT_QEMU=y for Cortex-M4F in
# QEMU, with the tests of the drivers and of the instruction count. (Twister knows no emulator of
# mps2/an386 but Arm's, so a test that is hosted on native_sim starts QEMU.) Else, on RS485, there is a
# slave whose cells are measured by an emulated BQ76952.

set(apps ${APP_DIR}/../..)
set(conf ${APP_DIR}/firmware.conf)
set(overlay)
set(board native_sim/native/64)
if(PLANT_QEMU)
  set(board mps2/an386)
  list(APPEND conf ${APP_DIR}/qemu.conf)
  set(tests ${apps}/twister-tests)
  set(drivers_rs485_EXTRA_CONF_FILE rs485.conf CACHE INTERNAL "")
  set(drivers_can_EXTRA_CONF_FILE can.conf CACHE INTERNAL "")
  set(drivers_can_EXTRA_DTC_OVERLAY_FILE can.overlay CACHE INTERNAL "")
  ExternalZephyrProject_Add(APPLICATION drivers_rs485 SOURCE_DIR ${tests}/shell BOARD ${board})
  ExternalZephyrProject_Add(APPLICATION drivers_can SOURCE_DIR ${tests}/shell BOARD ${board})
  ExternalZephyrProject_Add(APPLICATION latency SOURCE_DIR ${tests}/latency BOARD ${board})
elseif(PLANT_CAN)
  list(APPEND conf can.conf)
  list(APPEND overlay can.overlay)
else()
  set(chip_EXTRA_CONF_FILE "${conf};bq76952.conf" CACHE INTERNAL "")
  set(chip_EXTRA_DTC_OVERLAY_FILE bq76952.overlay CACHE INTERNAL "")
  ExternalZephyrProject_Add(APPLICATION chip SOURCE_DIR ${apps}/app-slave BOARD ${board})
endif()
foreach(firmware master slave)
  set(${firmware}_EXTRA_CONF_FILE "${conf}" CACHE INTERNAL "")
  set(${firmware}_EXTRA_DTC_OVERLAY_FILE "${overlay}" CACHE INTERNAL "")
  ExternalZephyrProject_Add(APPLICATION ${firmware} SOURCE_DIR ${apps}/app-${firmware} BOARD ${board})
endforeach()
