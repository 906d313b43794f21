# Which ARM64 kernels llama.cpp is built with. CMake includes this file after project("ggml"), because .cargo/config.toml
# names it in CMAKE_PROJECT_ggml_INCLUDE; llama-cpp-sys-2 hands that on. On anything but ARM64 Linux it changes nothing.
#
# A change here is not noticed by cargo: `cargo clean --release --package llama-cpp-sys-2`, with --target for a cross build.

if (NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    return()
endif()

# --- Kernels for the CPU at hand (`cargo build --release` on the phone) ---
#
# ggml would ask the compiler for -mcpu=native. GCC gives up on cores of more than two kinds and on pairs that it has no name
# for, which is nearly every phone, and then compiles for plain armv8-a without a word. The kernel knows: what stands in
# /proc/cpuinfo holds for every core.

function (arm64_kernels_of_this_cpu result)
    file(STRINGS "${ARM64_CPUINFO}" lines REGEX "^Features[ \t]*:")
    if (NOT lines)
        return()
    endif()
    list(GET lines 0 line)
    string(REGEX REPLACE "^[^:]*:[ \t]*" "" line "${line}")
    string(REGEX MATCHALL "[^ \t]+" features "${line}")
    set(march "armv8-a")
    if ("asimddp" IN_LIST features OR "asimdhp" IN_LIST features)
        set(march "armv8.2-a")
    endif()
    # The kernel's names, and the compiler's. Not from armv8.6-a on, which would imply bf16: cores with i8mm may lack it.
    foreach (pair asimddp=dotprod asimdhp=fp16 i8mm=i8mm sve=sve sve2=sve2)
        string(REPLACE "=" ";" pair "${pair}")
        list(GET pair 0 feature)
        list(GET pair 1 extension)
        if ("${feature}" IN_LIST features)
            string(APPEND march "+${extension}")
        endif()
    endforeach()
    set(${result} "${march}" PARENT_SCOPE)
endfunction()

if (NOT GGML_CPU_ALL_VARIANTS)
    set(ARM64_CPUINFO "/proc/cpuinfo" CACHE FILEPATH "Where the features of this machine's CPU are read")
    if (GGML_NATIVE AND NOT CMAKE_CROSSCOMPILING)
        arm64_kernels_of_this_cpu(ARM64_MARCH)
        if (ARM64_MARCH)
            set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
            set(GGML_CPU_ARM_ARCH "${ARM64_MARCH}" CACHE STRING "" FORCE)
            message(STATUS "ARM64 kernels for this machine's CPU: -march=${ARM64_MARCH}")
        endif()
    endif()
    return()
endif()

# --- Kernels for the CPUs of phones, chosen when the program starts (feature `dynamic`, `make arm64`) ---
#
# ggml's list lacks a variant for i8mm without SVE (Snapdragon 8 Gen 1 to 3), and ends in two for SME, which GCC before 14
# can't compile and for which it has no kernels here: the first of those becomes the missing one. What no known phone would
# choose is left out, 0.7 MB each; a CPU that would have chosen it gets the next lower one.

set(ARM64_VARIANTS ggml-cpu-armv8.0_1 ggml-cpu-armv8.2_2 ggml-cpu-armv9.2_1 ggml-cpu-armv8.6_2 CACHE INTERNAL "")
set(ARM64_LEFT_OUT ggml-cpu-armv8.2_1 ggml-cpu-armv8.2_3 ggml-cpu-armv8.6_1 ggml-cpu-armv9.2_2)

set(GGML_NATIVE OFF CACHE BOOL "" FORCE) # else every variant would be compiled for the building machine

function (arm64_retune target name march)
    get_target_property(options ${target} COMPILE_OPTIONS)
    list(FILTER options EXCLUDE REGEX "^-march=")
    set_target_properties(${target} PROPERTIES COMPILE_OPTIONS "${options};-march=${march}" OUTPUT_NAME ${name})
    # What the kernels are compiled with, and what their score (in the -feats target) asks of the CPU.
    foreach (part ${target} ${target}-feats)
        get_target_property(definitions ${part} COMPILE_DEFINITIONS)
        list(FILTER definitions EXCLUDE REGEX "^GGML_USE_(DOTPROD|FP16_VECTOR_ARITHMETIC|SVE|SVE2|MATMUL_INT8|SME)$")
        set_target_properties(${part} PROPERTIES COMPILE_DEFINITIONS "${definitions};${ARGN}")
    endforeach()
endfunction()

# A target of the installation has to exist: it becomes an empty library of a name that nobody looks for.
function (arm64_leave_out)
    file(WRITE "${CMAKE_BINARY_DIR}/empty.c" "int ggml_variant_that_is_not_built;\n")
    foreach (target ${ARM64_LEFT_OUT})
        set_target_properties(${target} PROPERTIES SOURCES "${CMAKE_BINARY_DIR}/empty.c" OUTPUT_NAME unused-${target}
            COMPILE_OPTIONS "" LINK_LIBRARIES "")
        set_target_properties(${target}-feats PROPERTIES EXCLUDE_FROM_ALL ON)
    endforeach()
endfunction()

cmake_language(DEFER CALL arm64_retune ggml-cpu-armv9.2_1 ggml-cpu-armv8.6_0 armv8.2-a+dotprod+fp16+i8mm
    GGML_USE_DOTPROD GGML_USE_FP16_VECTOR_ARITHMETIC GGML_USE_MATMUL_INT8)
cmake_language(DEFER CALL arm64_leave_out)

# --- Smaller libraries, because phones fetch them over the air ---
#
# Only what other libraries ask for is visible: the rest is called without a detour, and dropped where nobody calls it. Pages of
# 16 KiB are the largest that phones have; the default of 64 KiB pads each file. libllama builds the graphs of some hundred
# architectures, a small part of a step's time; the kernels stay at -O3.
#
# What a library shows is listed in exports-NAME.map. At first that is all that a program could ask for; once there is a program,
# tools/arm64-build.sh writes what it does ask for, and links again.
#
# ARM64_LLD is the folder of rustup's linker, see tools/arm64-env.sh. It packs relocations, and folds functions of equal
# instructions. The latter not in ggml-base, which tells a kind of buffer by the address of the function that frees it.

function (arm64_exports target list)
    set(map "${CMAKE_BINARY_DIR}/exports-${target}.map")
    file(WRITE "${map}" "{ global: ${list} };\n")
    target_link_options(${target} PRIVATE "-Wl,--version-script=${map}")
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${map}")
endfunction()

function (arm64_shrink)
    foreach (target llama ggml ggml-base ${ARM64_VARIANTS})
        target_compile_options(${target} PRIVATE -fvisibility=hidden -ffunction-sections -fdata-sections)
        target_link_options(${target} PRIVATE -Wl,--gc-sections -Wl,-z,max-page-size=16384)
        set_target_properties(${target} PROPERTIES BUILD_WITH_INSTALL_RPATH ON) # they are not always installed before they are shipped
        if (NOT "$ENV{ARM64_LLD}" STREQUAL "")
            target_link_options(${target} PRIVATE -fuse-ld=lld "-B$ENV{ARM64_LLD}" -Wl,-z,pack-relative-relocs -Wl,-O2 -Wl,--undefined-version)
        endif()
    endforeach()
    target_compile_options(llama PRIVATE -Os)
    if (NOT "$ENV{ARM64_LLD}" STREQUAL "")
        target_link_options(llama PRIVATE -Wl,--icf=all)
    endif()
    # Hidden visibility does not reach what is made of the standard library's templates; a list of what is wanted does.
    arm64_exports(llama "llama_*; _Z[0-9]llama_*; _Z[0-9][0-9]llama_*; local: *;")
    arm64_exports(ggml "*;")
    arm64_exports(ggml-base "*;")
    foreach (target ${ARM64_VARIANTS})
        arm64_exports(${target} "ggml_backend_init; ggml_backend_score; local: *;")
    endforeach()
endfunction()

cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL arm64_shrink)
