"""One episode after another, in one browser: what is driven where, from which start, by whom. No network here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from wm_gym.actions import FloatArray
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.play.controls import HandControls
from wm_gym.agents.play.drive_record import Drive, DriveRecord
from wm_gym.agents.play.pilot import Pilot
from wm_gym.agents.play.worlds import DreamWorld, SimulatorWorld, View
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.envs.arguments import check_count
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.simulators import has_connection
from wm_gym.errors import ConfigError, SimulatorError, WMGymError
from wm_gym.shared_cores import adapt_threads

Mode = Literal["dream", "simulator", "both"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_HORIZON = 100_000
SIDE_BY_SIDE_HORIZON = 25
"""Steps after which a dream beside the simulator starts again, until another horizon is chosen: by then the road in
view is of the dream's own making."""
_NOT_BEGUN = "it could not begin"


@dataclass
class PlaySetup:
    """What every browser's episodes share.

    Attributes:
        model: The world model.
        driver: The agent, or ``None``.
        mode: Where to begin.
        record: Where drives are kept, or ``None``.
        connection: Where the simulator runs, as for :func:`~wm_gym.envs.simulators.make_simulator`.
        horizon: Steps until a dream is cut.
        termination: How a dream ends, as of :class:`~wm_gym.envs.dream.DreamDrivingEnv`.
        seed: Of the first episode: the simulator's track, the model's noise and the first start state.

    Raises:
        ConfigError: A value is out of range.
        SimulatorError: The agent's simulator is not the model's.
    """

    model: DreamModel
    driver: Driver | None = None
    mode: Mode = "dream"
    record: DriveRecord | None = None
    connection: Mapping[str, Any] | None = None
    horizon: int = 500
    termination: str = "sample"
    seed: int = 0
    _simulators: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_seed_is_ours(self.seed)
        if self.driver is not None:
            self.driver.check_simulator(self.model.simulator)
        # Whatever is wrong with model, horizon or termination shows here, not in a browser.
        DreamWorld(self.model, check_horizon(self.horizon), self.termination)

    def take_simulator(self) -> SimulatorWorld:
        """Make a simulator; one that runs on a server is made once at a time.

        Raises:
            SimulatorError: It cannot be made, or another page has the only one.
        """
        spec = self.model.simulator
        if self._simulators and has_connection(spec.id):
            raise SimulatorError(
                f"another page drives on the server of {spec.id}, which simulates for one at a time; close that page, "
                "or drive in the dream."
            )
        world = SimulatorWorld(spec, self.connection)
        self._simulators += 1
        return world

    def give_back(self, world: SimulatorWorld) -> None:
        """Close a simulator that was taken."""
        self._simulators -= 1
        world.close()


class PlaySession:
    """The episodes of one browser.

    A dream beside the simulator starts in the state that the model filters from the simulator's first frame, and takes
    the same actions. When it ends before the simulator's episode does, it starts again from what has been filtered by
    then; :meth:`dream_again` does that at any moment.

    Args:
        setup: What all sessions share.
        tell: Called with a sentence for the user, such as where an episode was kept.

    Attributes:
        mode: Where one drives.
        dream: The dreams; a change of their temperature counts from the next start on.
        start_state: The dream's start state.
        seed: The simulator's seed; in a dream, that of its noise.
        pilot: Who drives.
        views: What each world shows, by its name: ``"dream"``, ``"simulator"``.
        action: ``(A,)`` float32, the last one, in the stored format; ``None`` before the first step.
        ended: Why there is no next step, in words; ``None`` while there is one.
    """

    def __init__(self, setup: PlaySetup, tell: Callable[[str], None] = lambda sentence: None) -> None:
        self._setup = setup
        self._tell = tell
        self.dream = DreamWorld(setup.model, setup.horizon, setup.termination)
        self._horizons = {"dream": setup.horizon, "both": min(setup.horizon, SIDE_BY_SIDE_HORIZON)}
        self._simulator: SimulatorWorld | None = None
        self._random = np.random.default_rng(setup.seed)
        self._drive: Drive | None = None
        self._keeps_drives = False
        self.mode: Mode = setup.mode
        self.start_state = int(self._random.integers(self.dream.num_start_states))
        self.seed = setup.seed
        self.pilot = Pilot(setup.model.simulator.action, setup.driver)
        self.views: dict[str, View] = {}
        self.action: FloatArray | None = None
        self.ended: str | None = _NOT_BEGUN

    @property
    def horizon(self) -> int:
        """Steps until a dream is cut, alone or beside the simulator; a change counts from the dream's next start on."""
        return self._horizons["both" if self.mode == "both" else "dream"]

    @horizon.setter
    def horizon(self, steps: int) -> None:
        self._horizons["both" if self.mode == "both" else "dream"] = check_horizon(steps)

    @property
    def keeps_drives(self) -> bool:
        """Whether episodes are kept: the one under way, or just ended, and those after it, each from its start."""
        return self._keeps_drives

    @keeps_drives.setter
    def keeps_drives(self, keeps: bool) -> None:
        if keeps and self._setup.record is None:
            raise ConfigError("there is no folder to keep drives in; start wm-gym play with --record DIR.")
        if self._keeps_drives and not keeps:
            self._keep()
        self._keeps_drives = keeps

    def start(self, *, mode: Mode | None = None, start_state: int | None = None, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            mode: Where; ``None`` stays there.
            start_state: The dream's start state; ``None`` is the last one.
            seed: See :attr:`seed`; ``None`` is the last one.

        Raises:
            ConfigError: There is no such start state, or the seed is out of range.
            SimulatorError: The simulator cannot be had.
        """
        if seed is not None:
            check_seed_is_ours(seed)
        count = self.dream.num_start_states
        if start_state is not None and not 0 <= start_state < count:
            raise ConfigError(f"there is no start state {start_state}; this model has 0 to {count - 1}.")
        self._keep()
        self.mode = self.mode if mode is None else mode
        self.start_state = self.start_state if start_state is None else start_state
        self.seed = self.seed if seed is None else seed
        self.views, self.action = {}, None
        self.ended = _NOT_BEGUN
        self.dream.horizon = self.horizon
        if self.mode == "dream":
            self._leave_simulator()
            self.views["dream"] = self.dream.start(self.start_state, self.seed)
        else:
            if self._simulator is None:
                self._simulator = self._setup.take_simulator()
            model = self._setup.model
            is_followed = self.mode == "both" or self.pilot.sees_through(model)
            self.views["simulator"] = self._simulator.start(self.seed, model if is_followed else None)
            if self.mode == "both":
                self.views["dream"] = self.dream.start_from(self._simulator.state, self.seed)
        self.ended = None
        self.pilot.begin(self.seed)
        if self._setup.record is not None:
            seed_of_episode = -1 if self.mode == "dream" else self.seed
            self._drive = self._setup.record.begin(self.leading, seed=seed_of_episode)

    def again(self) -> None:
        """Back to the last start: equal actions give the same drive once more."""
        self.start()

    def next(self) -> None:
        """Begin from another start: a start state drawn at random, the next seed."""
        drawn = int(self._random.integers(self.dream.num_start_states))
        self.start(start_state=drawn, seed=(self.seed + 1) % HELD_OUT_FROM)

    def dream_again(self) -> None:
        """Let the dream beside the simulator start again, from what has been filtered from the frames so far.

        Raises:
            ConfigError: There is no dream beside the simulator.
        """
        if self.mode != "both" or self._simulator is None or self.ended == _NOT_BEGUN:
            raise ConfigError("a dream starts again from the simulator's state where both are driven; choose both.")
        self.dream.horizon = self.horizon
        self.views["dream"] = self.dream.start_from(self._simulator.state, self.seed + self.leading.steps)

    @property
    def leading(self) -> View:
        """The view that the pilot drives by: the simulator's where there is one."""
        return self.views["dream" if self.mode == "dream" else "simulator"]

    def step(self, hand: HandControls) -> bool:
        """One step in every world that is driven, under one action.

        Args:
            hand: Where the hand holds wheel and pedals.

        Returns:
            Whether there was one: not where the episode has ended.

        Raises:
            SimulatorLostError: The simulator was lost; the episode ends.
            BundleError: The model imagined numbers that are not finite; the episode ends.
        """
        if self.ended is not None:
            return False
        try:
            self._step(hand)
        except WMGymError:
            self.ended, self._drive = "an error", None  # such an episode is worth nothing
            raise
        if self.ended is not None and self._keeps_drives:
            self._keep()
        return True

    def close(self) -> None:
        """Keep the episode where episodes are kept, and close the simulator."""
        try:
            self._keep()
        finally:
            self._leave_simulator()

    def _step(self, hand: HandControls) -> None:
        adapt_threads()
        in_dream = self.mode == "dream"
        self.action = self.pilot.action(self.leading, self._features(), hand)
        if self._simulator is not None and not in_dream:
            self.views["simulator"] = self._simulator.step(self.action)
        if in_dream:
            self.views["dream"] = self.dream.step(self.action)
        elif self.mode == "both" and self.views["dream"].ended:
            self.dream_again()
        elif self.mode == "both":
            self.views["dream"] = self.dream.step(self.action)
        view = self.leading
        if self._drive is not None:
            by_hand = self.pilot.who == "hand"
            self._drive.add(self.action, view, "hand" if by_hand else self.pilot.name, by_hand=by_hand)
        if view.ended:
            self.ended = self._reason(view)

    def _features(self) -> FloatArray | None:
        """What the agent sees of the leading world, where it sees through this model; ``None`` shows it the frame."""
        if not self.pilot.sees_through(self._setup.model):
            return None
        return self.dream.features if self.mode == "dream" or self._simulator is None else self._simulator.features

    def _reason(self, view: View) -> str:
        if self.mode != "dream":
            named = view.info.get("end")
            if isinstance(named, str) and named:
                return f"the simulator ended the drive: {named}"
            return "the task has ended" if view.terminated else "the simulator's limit on steps is reached"
        if view.terminated:
            return "the model says that the task has ended"
        return f"the horizon of {self.dream.horizon} steps is reached"

    def _keep(self) -> None:
        """Write the episode, if episodes are kept; a folder that refuses it costs the episode, not the session."""
        drive, self._drive = self._drive, None
        if drive is None or not self._keeps_drives or not len(drive.recorder):
            return
        assert self._setup.record is not None
        try:
            header = self._setup.record.keep(drive, is_dream=self.mode == "dream")
        except WMGymError as error:
            self._tell(f"The drive was not kept: {error}")
            return
        self._tell(f"Kept a drive of {header.length} steps as {header.path}.")

    def _leave_simulator(self) -> None:
        if self._simulator is not None:
            simulator, self._simulator = self._simulator, None
            self._setup.give_back(simulator)


def check_horizon(steps: int) -> int:
    """Check a dream's horizon, 1 to :data:`MAX_HORIZON` steps.

    Raises:
        ConfigError: It is another one.
    """
    if check_count("horizon", steps) > MAX_HORIZON:
        raise ConfigError(f"horizon={steps} is too long; use up to {MAX_HORIZON} steps.")
    return steps


def check_seed_is_ours(seed: int) -> None:
    """Check that a seed is not held out for evaluation.

    Raises:
        ConfigError: It is, or it is negative.
    """
    if not 0 <= seed < HELD_OUT_FROM:
        raise ConfigError(
            f"the seed {seed} is not in 0 to {HELD_OUT_FROM - 1}; larger ones are held out for evaluation."
        )
