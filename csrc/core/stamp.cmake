# Writes bindings/zz_stamp.go with the archive's hash, only when it changed.
file(SHA256 ${ARCHIVE} HASH)
set(TEXT "package bindings\n\n// archiveHash names the C archive this package was linked with.\nconst archiveHash = \"${HASH}\"\n")
if(EXISTS ${OUT})
  file(READ ${OUT} OLD)
endif()
if(NOT "${OLD}" STREQUAL "${TEXT}")
  file(WRITE ${OUT} "${TEXT}")
endif()
