"""The threads that CPU kernels run on, and `launch`, which spreads the items of a kernel over them.

Owns its threads. It does not know what any kernel computes.

Why not numba's parallel loops, or torch's OpenMP pool: a decode step is some 200 operators of 50 microseconds each, on
cores that the gateway and other processes use too. Numba's portable pool takes tens of microseconds to wake for each.
OpenMP ends each region with a barrier of all threads, so one that is not running, because something else runs on its
core, stops the step for a scheduler's time slice; and its threads spin for milliseconds after each step. Here the
caller works through the items itself and waits only for threads that have taken one; a thread that comes late finds
nothing left. Idle threads spin long enough to bridge the gap between two operators, then sleep.

The protocol. STATE is one word: generation * 2**33 + open * 2**32 + number of threads in the job.

    caller                                     thread
    write the job, open a new generation       wait for an open generation that it has not joined
    wake sleepers                              count itself in (compare and swap; fails once closed)
    work                                       work
    close; wait until nobody is counted in     count itself out; if last and the caller sleeps, wake it

Work. The items lie in as many ranges as there are threads. Each thread takes the items of a range of its own in order,
so that it streams through adjacent memory, and then what is left of the others'.

The job's data lie on the caller's stack: no thread touches them unless counted in. The team works on one job at a time:
a second caller finds it taken and works alone.
"""

import ctypes
import sys
import threading
from typing import Any

import llvmlite.ir as ir
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engines.native.kernels.cpu_atomics import (
    INT64,
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_replace,
    atomic_store,
    call_c,
    call_item,
    relax,
)
from engines.native.kernels.cpu_compile import helper, kernel

IDLE_SPINS = 4000  # pauses of a thread before it sleeps: about 50 to 100 microseconds
WAIT_SPINS = 2000  # pauses of the caller before it sleeps until the last thread is done

# The team's memory: one field on each cache line, addresses in bytes; the two semaphores take 32 bytes each.
_CACHE_LINE_BYTES = 64
_MAX_RANGES = 64
_FIELDS = tuple(range(0, 13 * _CACHE_LINE_BYTES, _CACHE_LINE_BYTES))
STATE, TAKEN, SLEEPERS, CALLER_SLEEPS, NUM_THREADS, SEM_POST, SEM_WAIT, OFFERED, DONE = _FIELDS[:9]
JOB_FUNCTION, JOB_DATA, NUM_ITEMS, ARRIVED = _FIELDS[9:]
TAKEN_OF_RANGE = len(_FIELDS) * _CACHE_LINE_BYTES  # of _MAX_RANGES lines
_MEMORY_BYTES = TAKEN_OF_RANGE + _MAX_RANGES * _CACHE_LINE_BYTES
_OPEN = 1 << 32
_GENERATION_SHIFT = 33


@helper
def _count_inside(state):
    return state & (_OPEN - 1)


@helper
def _num_ranges(team):
    return min(atomic_load(team + NUM_THREADS), _MAX_RANGES)


@helper
def _work(team):
    """Take items of the job until none is left."""
    function, data = atomic_load(team + JOB_FUNCTION), atomic_load(team + JOB_DATA)
    num_items, num_ranges = atomic_load(team + NUM_ITEMS), _num_ranges(team)
    own = atomic_add(team + ARRIVED, 1)
    for step in range(num_ranges):
        index = (own + step) % num_ranges
        taken = team + TAKEN_OF_RANGE + index * _CACHE_LINE_BYTES
        first, end = num_items * index // num_ranges, num_items * (index + 1) // num_ranges
        item = first + atomic_add(taken, 1)
        while item < end:
            call_item(function, item, data)
            item = first + atomic_add(taken, 1)


@helper
def _run(team, num_items, function, data):
    """Offer a job to the threads, work on it, and return when all of it is done."""
    atomic_store(team + JOB_FUNCTION, function)
    atomic_store(team + JOB_DATA, data)
    atomic_store(team + NUM_ITEMS, num_items)
    atomic_store(team + ARRIVED, 0)
    for index in range(_num_ranges(team)):
        atomic_store(team + TAKEN_OF_RANGE + index * _CACHE_LINE_BYTES, 0)
    atomic_add(team + STATE, (1 << _GENERATION_SHIFT) + _OPEN)
    for _ in range(atomic_exchange(team + SLEEPERS, 0)):
        call_c(atomic_load(team + SEM_POST), team + OFFERED)
    _work(team)
    atomic_add(team + STATE, -_OPEN)
    spins = 0
    while _count_inside(atomic_load(team + STATE)) != 0:
        spins += 1
        relax()
        if spins >= WAIT_SPINS:  # a thread was put off its core in the middle of an item: leave it this one
            spins = 0
            atomic_store(team + CALLER_SLEEPS, 1)
            last_left = _count_inside(atomic_load(team + STATE)) == 0
            if not (last_left and atomic_exchange(team + CALLER_SLEEPS, 0) == 1):
                call_c(atomic_load(team + SEM_WAIT), team + DONE)


@kernel("void(int64)")
def _serve(team):
    """What a thread of the team runs, for ever."""
    joined, spins = 0, 0
    while True:
        state = atomic_load(team + STATE)
        generation = state >> _GENERATION_SHIFT
        if state & _OPEN and generation != joined:
            if atomic_replace(team + STATE, state, state + 1):
                joined, spins = generation, 0
                _work(team)
                before = atomic_add(team + STATE, -1)
                last = _count_inside(before) == 1 and before & _OPEN == 0
                if last and atomic_exchange(team + CALLER_SLEEPS, 0) == 1:
                    call_c(atomic_load(team + SEM_POST), team + DONE)
        elif spins < IDLE_SPINS:
            spins += 1
            relax()
        else:  # a job offered between here and the wait goes on without this thread; the next one wakes it
            spins = 0
            atomic_add(team + SLEEPERS, 1)
            call_c(atomic_load(team + SEM_WAIT), team + OFFERED)


class _Team:
    """The memory that the caller and the threads share; starts as many threads as torch would use.

    Without POSIX semaphores in anonymous memory, which only Linux is known to have, kernels run on the caller alone;
    so they do in a forked child, where the threads do not exist: the caller finds all items untaken.
    """

    def __init__(self) -> None:
        memory = (ctypes.c_char * (_MEMORY_BYTES + _CACHE_LINE_BYTES))()
        # Never freed: the threads are daemons and may outlive Python's objects at exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        self.address = -(-ctypes.addressof(memory) // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES
        self.num_threads = torch.get_num_threads() if sys.platform == "linux" else 1
        self._store(NUM_THREADS, self.num_threads)
        if self.num_threads > 1:
            self._start_threads()

    def _start_threads(self) -> None:
        libc = ctypes.CDLL(None)
        for semaphore in (OFFERED, DONE):
            libc.sem_init(ctypes.c_void_p(self.address + semaphore), 0, 0)
        self._store(SEM_POST, ctypes.cast(libc.sem_post, ctypes.c_void_p).value or 0)
        self._store(SEM_WAIT, ctypes.cast(libc.sem_wait, ctypes.c_void_p).value or 0)
        for _ in range(self.num_threads - 1):
            threading.Thread(target=_serve, args=(self.address,), name="kernel", daemon=True).start()

    def _store(self, field: int, value: int) -> None:
        ctypes.c_int64.from_address(self.address + field).value = value


TEAM = _Team()


@helper
def launch(team, work):
    """In a kernel: run a `job` on the team, given as TEAM.address, and return when all its items are done."""
    num_items, function, data = work
    if num_items <= 1 or atomic_load(team + NUM_THREADS) <= 1 or atomic_exchange(team + TAKEN, 1) == 1:
        for item in range(num_items):
            call_item(function, item, data)
    else:
        _run(team, num_items, function, data)
        atomic_store(team + TAKEN, 0)


@intrinsic
def _job(typing_context: Any, _num_items: Any, body: Any, arguments: Any) -> Any:
    """In a kernel: the job of calling body(item, *arguments) for item in range(num_items), for `launch`.

    `body` is a helper, `arguments` a tuple of numbers. The body must write disjoint memory for each item and must not
    raise. Gives (number of items, address of a C function that does one, address of its data).
    """
    body_signature = body.get_call_type(typing_context, (types.int64, *arguments), {})
    num_arguments = len(arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        num_items, _, argument_tuple = values
        compiled = body.dispatcher.get_compile_result(body_signature)
        context.active_code_library.add_linking_library(compiled.library)
        body_function = context.declare_function(builder.module, compiled.fndesc)
        data = cgutils.alloca_once_value(builder, argument_tuple)

        name = builder.module.get_unique_name("do_item")
        do_item = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [INT64, INT64]), name)
        do_item.linkage = "internal"
        inner = ir.IRBuilder(do_item.append_basic_block("entry"))
        loaded = inner.load(inner.inttoptr(do_item.args[1], argument_tuple.type.as_pointer()))
        unpacked = [inner.extract_value(loaded, index) for index in range(num_arguments)]
        inputs = [do_item.args[0], *unpacked]
        context.call_conv.call_function(inner, body_function, body_signature.return_type, body_signature.args, inputs)
        inner.ret_void()

        parts = [num_items, builder.ptrtoint(do_item, INT64), builder.ptrtoint(data, INT64)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.int64, 3)(types.int64, body, arguments), generate


job: Any = _job
