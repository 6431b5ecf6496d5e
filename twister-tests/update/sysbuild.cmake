# SPDX-License-Identifier: Apache-2.0

foreach(role master slave)
  ExternalZephyrProject_Add(
    APPLICATION app-${role}
    SOURCE_DIR ${APP_DIR}/../../app-${role}
    APP_TYPE MAIN
  )
  # A short superframe: a slave's image comes through its windows.
  set_config_int(app-${role} CONFIG_HELIO_BUS_SEATS 2)
endforeach()
