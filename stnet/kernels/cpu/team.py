"""PyTorch's own threads for compiled kernels.

Where PyTorch runs on GNU's OpenMP, or a library that has its entries, its threads wait for the next loop without
sleeping, for ten milliseconds or more, after they have done their part of a matrix product. Threads of our own would
share the cores with them and begin late, often after the work is done. So a kernel asks OpenMP for the same team that
PyTorch's loops have, from compiled code: no thread of it waits for the interpreter.
"""

import ctypes
import functools
from pathlib import Path

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from stnet.kernels.cpu.simd import INT, LONG

_BYTES = ir.IntType(8).as_pointer()
_BODY = ir.FunctionType(ir.VoidType(), [_BYTES])
_NUMBER = ir.FunctionType(INT, [])
_PARALLEL = ir.FunctionType(ir.VoidType(), [_BODY.as_pointer(), _BYTES, INT, INT])


@functools.cache
def pytorch_team() -> tuple[int, int] | None:
    """Addresses of `GOMP_parallel(body, data, threads, flags)` and `omp_get_thread_num()`, for `on_team`.

    None where PyTorch's loops run on something else.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = library.GOMP_parallel, library.omp_get_thread_num
    except (OSError, AttributeError):  # macOS, Windows, a PyTorch of other threads
        return None
    parallel, number = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    return parallel, number


@intrinsic(prefer_literal=False)
def on_team(typing, parallel, number, threads, function, arguments):
    """Call a kernel, with a thread's number and a tuple of arguments, on each of `threads` threads.

    `parallel` and `number` are what `pytorch_team` returns. Returns 1 where a call failed, else 0.
    """
    resolved = function.get_call_type(typing, (types.int64, *arguments), {})

    def code(context, builder, signature, args):
        parallel, number, threads, _, values = args
        overload = function.dispatcher.overloads[resolved.args]
        context.active_code_library.add_linking_library(overload.library)
        kernel = context.declare_function(builder.module, overload.fndesc)
        failed = cgutils.alloca_once_value(builder, ir.Constant(LONG, 0))
        arguments = cgutils.alloca_once_value(builder, values)
        shared = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [arguments, failed, number]))

        # Failures cannot leave a function that C calls: they are noted, and the caller asks.
        body = ir.Function(builder.module, _BODY, builder.module.get_unique_name("member_of_team"))
        body.linkage = "internal"
        inner = ir.IRBuilder(body.append_basic_block())
        place = inner.bitcast(body.args[0], shared.type)
        arguments, failed_there, number = cgutils.unpack_tuple(inner, inner.load(place))
        me = inner.sext(inner.call(inner.inttoptr(number, _NUMBER.as_pointer()), []), LONG)
        values = [me, *cgutils.unpack_tuple(inner, inner.load(arguments))]
        status, _ = context.call_conv.call_function(inner, kernel, resolved.return_type, resolved.args, values)
        with cgutils.if_unlikely(inner, status.is_error):
            inner.store(ir.Constant(LONG, 1), failed_there)
        inner.ret_void()

        parallel = builder.inttoptr(parallel, _PARALLEL.as_pointer())
        flags = ir.Constant(INT, 0)
        builder.call(parallel, [body, builder.bitcast(shared, _BYTES), builder.trunc(threads, INT), flags])
        return builder.load(failed)

    return types.int64(types.int64, types.int64, types.int64, function, arguments), code
