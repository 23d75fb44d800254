"""How a compiled kernel computes with many signed bytes at once: loads, stores and the few operations that a soft decoder needs.

Left to itself the compiler turns a loop over bytes into vector code only if it can prove that no array overlaps another, which
a decoder's columns do by design. Here the vector is a type of its own, so there is nothing to prove: every operation below is
one instruction (or a few, where a register is shorter than ``WIDTH`` bytes) on any processor that LLVM knows.

Machine code kept on disk belongs to the file of its kernel: after a change here, touch the files whose kernels use it.
"""

from collections.abc import Callable
from typing import Any, Final, NewType, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model
from numpy.typing import NDArray

WIDTH: Final = 64
"""Bytes per vector: one AVX-512 register, two of AVX2, four of NEON."""

Lanes = NewType("Lanes", object)
"""A vector of ``WIDTH`` signed bytes; exists inside compiled kernels only."""
SoftBytes = NDArray[np.int8]
Index = int | np.int64

_BYTE: Final = ir.IntType(8)
_VECTOR: Final = ir.VectorType(_BYTE, WIDTH)
_BITS: Final = ir.IntType(WIDTH)
_Generate = Callable[[Any, Any, Any, Any], Any]


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, described: Any) -> None:
        super().__init__(manager, described, _VECTOR)


_LANES: Final = _LanesType()


def _constant(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * WIDTH)


def _call(builder: Any, name: str, *operands: Any) -> Any:
    """Emit a call of an LLVM intrinsic whose result is a vector."""
    kind = ir.FunctionType(_VECTOR, [operand.type for operand in operands])
    callee = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}i8")
    return builder.call(callee, operands)


def _address(context: Any, builder: Any, signature: Any, arguments: Any, target: Any) -> Any:
    """Point at element ``arguments[1]`` of the byte array ``arguments[0]``; negative indices do not wrap."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), target.as_pointer())


def _nullary(emit: Callable[[], Any]) -> Callable[[], Lanes]:
    @intrinsic
    def operation(typing: Any) -> tuple[Any, _Generate]:
        return _LANES(), lambda context, builder, signature, arguments: emit()

    return cast(Callable[[], Lanes], operation)


def _unary(emit: Callable[[Any, Any], Any]) -> Callable[[Lanes], Lanes]:
    @intrinsic
    def operation(typing: Any, a: Any) -> tuple[Any, _Generate]:
        return _LANES(_LANES), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return cast(Callable[[Lanes], Lanes], operation)


def _binary(emit: Callable[[Any, Any, Any], Any]) -> Callable[[Lanes, Lanes], Lanes]:
    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> tuple[Any, _Generate]:
        return _LANES(_LANES, _LANES), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return cast(Callable[[Lanes, Lanes], Lanes], operation)


def _clipped(builder: Any, value: Any) -> Any:
    return _call(builder, "smax", value, _constant(-127))


def _negative(builder: Any, value: Any) -> Any:
    return builder.icmp_signed("<", value, _constant(0))


@intrinsic
def _load(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature, arguments, _VECTOR), align=1)

    return _LANES(array, types.intp), generate


@intrinsic
def _store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments, _VECTOR), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), generate


@intrinsic
def _store_signs(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(_negative(builder, arguments[2]), _BITS)
        builder.store(bits, _address(context, builder, signature, arguments, _BITS), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), generate


def _some(holds: Callable[[Any, Any], Any]) -> Callable[[Lanes], bool]:
    @intrinsic
    def operation(typing: Any, a: Any) -> tuple[Any, _Generate]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            bits = builder.bitcast(holds(builder, arguments[0]), _BITS)
            return builder.icmp_unsigned("!=", bits, ir.Constant(_BITS, 0))

        return types.boolean(_LANES), generate

    return cast(Callable[[Lanes], bool], operation)


@intrinsic
def _where_equal(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed("==", arguments[0], arguments[1]), arguments[2], arguments[3])

    return _LANES(_LANES, _LANES, _LANES, _LANES), generate


load = cast(Callable[[SoftBytes, Index], Lanes], _load)
"""Read ``WIDTH`` bytes from an index of a contiguous int8 array on; no bounds are checked."""
store = cast(Callable[[SoftBytes, Index, Lanes], None], _store)
"""Write ``WIDTH`` bytes from an index of a contiguous int8 array on; no bounds are checked."""
store_signs = cast(Callable[[NDArray[np.uint8], Index, Lanes], None], _store_signs)
"""Write one bit per lane (1 where negative), least-significant first, from a byte index of a contiguous uint8 array on."""
where_equal = cast(Callable[[Lanes, Lanes, Lanes, Lanes], Lanes], _where_equal)
"""Return the third where the first two are equal, else the fourth."""

any_negative = _some(_negative)
"""Say whether some lane is negative."""
any_zero = _some(lambda builder, a: builder.icmp_signed("==", a, _constant(0)))
"""Say whether some lane is 0."""
zero = _nullary(lambda: _constant(0))
"""Return 0 in every lane."""
largest = _nullary(lambda: _constant(127))
"""Return 127 in every lane."""
third = _nullary(lambda: _constant(42))
"""Return 42, a third of the range, in every lane."""
within_third = _unary(lambda builder, a: _call(builder, "smax", _call(builder, "smin", a, _constant(41)), _constant(-41)))
"""Return ``a``, clipped to -41..41: less than ``third``."""
clip = _unary(_clipped)
"""Return ``max(a, -127)``."""
add = _binary(lambda builder, a, b: _clipped(builder, _call(builder, "sadd.sat", a, b)))
"""Return ``a + b``, clipped to -127..127."""
subtract = _binary(lambda builder, a, b: _clipped(builder, _call(builder, "ssub.sat", a, b)))
"""Return ``a - b``, clipped to -127..127."""
least = _binary(lambda builder, a, b: _call(builder, "smin", a, b))
"""Return the lesser of two."""
greatest = _binary(lambda builder, a, b: _call(builder, "smax", a, b))
"""Return the greater of two."""
exclusive_or = _binary(lambda builder, a, b: builder.xor(a, b))
"""Return ``a ^ b``; of signs, their product."""
magnitude = _unary(lambda builder, a: _call(builder, "abs", a, ir.Constant(ir.IntType(1), 0)))
"""Return ``|a|`` for ``a`` above -128."""
three_quarters = _unary(lambda builder, a: builder.sub(a, builder.lshr(a, _constant(2))))
"""Return ``a - (a >> 2)`` for ``a`` of at least 0: three quarters, rounded up."""
with_sign = _binary(lambda builder, a, b: builder.select(_negative(builder, b), builder.sub(_constant(0), a), a))
"""Return ``-a`` where ``b`` is negative, else ``a``."""
