# Writes bindings/zz_stamp.go with the archive's hash, only when it changed. The constant is exported so that it is part of the compiled package: an
# unexported one leaves no trace in it, and `go` then takes the old link and the old test results from its cache.
file(SHA256 ${ARCHIVE} HASH)
set(TEXT "package bindings\n\n// ArchiveHash is the SHA-256 of the C archive this package was linked with.\nconst ArchiveHash = \"${HASH}\"\n")
if(EXISTS ${OUT})
  file(READ ${OUT} OLD)
endif()
if(NOT "${OLD}" STREQUAL "${TEXT}")
  file(WRITE ${OUT} "${TEXT}")
endif()
