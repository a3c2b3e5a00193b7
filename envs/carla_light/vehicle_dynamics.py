"""How vehicles move: a dynamic single-track model with limited grip, and lag in pedals, steering, engine and gearbox.

Lateral motion is the single-track model of M. Althoff, M. Koschi and S. Manzinger, "CommonRoad: Composable benchmarks
for motion planning on roads" (IEEE Intelligent Vehicles Symposium 2017) and its "CommonRoad: Vehicle Models", with the
parameters of their vehicle 2, a BMW 320i: axle loads shift with the longitudinal acceleration. Below 9 m/s and in
reverse it is their kinematic single-track model within the friction circle. What is added here is that tyres saturate:
where theirs are linear in the slip angle, the lateral force of an axle is ``grip * load * tanh(stiffness * slip)``, and
what braking and driving take is missing there. Their cornering stiffness is kept; the most grip there is is that of
CARLA's wheels, several times a road's, since its Traffic Manager takes bends at speeds that need it.

Wheel and pedals follow their targets no faster than in Unreal Engine 4's wheeled vehicles, which CARLA's are (default
``RiseRate`` and ``FallRate`` of ``WheeledVehicleMovementComponent``). Engine and gearbox are plain: constant torque up
to the rated power, five gears, no force while it shifts.

The frame is CARLA's: x forward, y to the right, positive yaw rates and steering angles turn right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GRAVITY = 9.81
MAX_STEER_DEG = 70.0
"""Of the front wheels: that of CARLA's ``WheelPhysicsControl``, for which its Traffic Manager is tuned."""
STEERING_CURVE = ((0.0, 1.0), (120.0, 0.7))
"""Speed in km/h and the part of the steering angle that is used there, as CARLA has it for cars."""
GEAR_RATIOS = (3.6, 2.1, 1.4, 1.03, 0.82)
FINAL_RATIO = 3.9
GEAR_SWITCH_S = 0.3
MASS_KG = 1093.3
MAX_RPM = 5800.0

_FRONT_M, _REAR_M = 1.1562, 1.4227
"""From the centre of gravity to the axles."""
_GYRATION = 1791.6 / MASS_KG / (_FRONT_M + _REAR_M) ** 2
"""Moment of inertia about the vertical axis for each kilogram and square metre of wheelbase."""
_HEIGHT = 0.21
"""Of the centre of gravity, in wheelbases."""
TYRE_FRICTION = 3.5
"""Of CARLA's wheels."""
_STIFFNESS = 20.898 * 1.0489 / TYRE_FRICTION
"""Of the tyres: lateral force for each radian of slip, in units of grip times load."""

_WHEEL_M = 0.32
_TORQUE_NM, _POWER_W, _EFFICIENCY = 200.0, 110e3, 0.9
_ENGINE_LAG_S = 0.15
_SHIFT_UP, _SHIFT_DOWN = 0.72, 0.32
"""Parts of the highest engine speed."""
_ENGINE_DRAG_M_S2 = 0.35
"""With the throttle closed."""
_BRAKE_M_S2, _HAND_BRAKE_M_S2 = 9.5, 4.5
_ROLLING_M_S2, _AIR = 0.12, 0.36e-3
"""Resistance: constant, and for each square of the speed."""

_STEER_RATES, _THROTTLE_RATES, _BRAKE_RATES = (2.5, 5.0), (6.0, 10.0), (6.0, 10.0)
"""Change in a second of an input in [-1, 1]: away from zero, and back to it."""
_STEP_S = 0.05
_KINEMATIC_M_S = 9.0
"""Below, and in reverse, wheels roll without slip, within what grip allows."""
_ROLLING_M_S = 1e-3
"""Of slip at the rear wheels there, below which they roll."""
_YAW_LAG_S = 0.08
"""Of the turn behind the wheels there."""
_LEAST_GRIP_LEFT = 0.1
"""Part of the lateral grip that a locked wheel keeps."""


@dataclass
class Pedals:
    """What the driver wants.

    Attributes:
        throttle: 0 to 1.
        brake: 0 to 1.
        steer: -1 to 1.
        hand_brake: Whether it is pulled.
        direction: 1 forward, -1 backward, 0 neutral.
    """

    throttle: float
    brake: float
    steer: float
    hand_brake: bool
    direction: int


@dataclass
class Motion:
    """How a vehicle moves, in its own frame.

    Attributes:
        forward: Speed ahead, m/s.
        right: Speed to the right, m/s.
        yaw_rate: Radians a second, positive to the right.
    """

    forward: float
    right: float
    yaw_rate: float


class VehicleDynamics:
    """One vehicle.

    Args:
        wheelbase: Metres. Lengths scale with it; all else is for each kilogram and the same for all vehicles.
    """

    def __init__(self, wheelbase: float) -> None:
        self.wheelbase = wheelbase
        scale = wheelbase / (_FRONT_M + _REAR_M)
        self._front, self._rear = _FRONT_M * scale, _REAR_M * scale
        self._gyration = _GYRATION * wheelbase**2
        self.gear = 1
        """1 to 5; reverse counts as 1."""
        self._shifting_s = 0.0
        self._steer = self._throttle = self._brake = 0.0
        self._engine = 0.0
        """Acceleration that the engine gives, m/s^2."""

    def advance(self, motion: Motion, pedals: Pedals, slope: float, seconds: float) -> tuple[float, float, float]:
        """Move on; changes ``motion``.

        Args:
            motion: How it moves.
            pedals: What the driver wants.
            slope: Sine of the angle at which the road rises ahead.
            seconds: How long.

        Returns:
            The way ahead and to the right, in metres in the frame at the beginning, and the turn in radians.
        """
        count = max(1, math.ceil(seconds / _STEP_S - 1e-6))
        step = seconds / count
        ahead = aside = turn = 0.0
        for _ in range(count):
            self._follow(pedals, motion.forward, step)
            before = motion.forward, motion.right, motion.yaw_rate
            self._step(motion, pedals, slope, step)
            # Trapezoids: the mean of the motion before and after, at the mean heading.
            turned = (before[2] + motion.yaw_rate) / 2 * step
            forward, right = (before[0] + motion.forward) / 2 * step, (before[1] + motion.right) / 2 * step
            cos, sin = math.cos(turn + turned / 2), math.sin(turn + turned / 2)
            ahead += forward * cos - right * sin
            aside += forward * sin + right * cos
            turn += turned
        return ahead, aside, turn

    def _follow(self, pedals: Pedals, speed: float, step: float) -> None:
        """Let wheel, pedals, engine and gearbox come nearer to what is wanted."""
        self._steer = _towards(self._steer, pedals.steer, _STEER_RATES, step)
        self._throttle = _towards(self._throttle, pedals.throttle, _THROTTLE_RATES, step)
        self._brake = _towards(self._brake, pedals.brake, _BRAKE_RATES, step)
        wheel = max(0.0, speed * pedals.direction) / _WHEEL_M
        self._shift(pedals.direction, wheel, step)
        ratio = GEAR_RATIOS[self.gear - 1] * FINAL_RATIO
        wanted = 0.0
        if self._shifting_s <= 0.0 and pedals.direction != 0 and wheel * ratio < MAX_RPM * math.pi / 30:
            force = min(_TORQUE_NM * ratio / _WHEEL_M, _POWER_W / max(wheel * _WHEEL_M, 0.1))
            wanted = self._throttle * force * _EFFICIENCY / MASS_KG * pedals.direction
        self._engine += (wanted - self._engine) * min(1.0, step / _ENGINE_LAG_S)

    def _shift(self, direction: int, wheel: float, step: float) -> None:
        self._shifting_s = max(0.0, self._shifting_s - step)
        if direction <= 0:
            self.gear = 1
            return
        if self._shifting_s > 0.0:
            return
        revolutions = wheel * GEAR_RATIOS[self.gear - 1] * FINAL_RATIO / (MAX_RPM * math.pi / 30)
        change = (revolutions > _SHIFT_UP and self.gear < len(GEAR_RATIOS)) - (
            revolutions < _SHIFT_DOWN and self.gear > 1
        )
        if change:
            self.gear += change
            self._shifting_s = GEAR_SWITCH_S

    def _step(self, motion: Motion, pedals: Pedals, slope: float, step: float) -> None:
        forward = motion.forward
        steer = self._steer * math.radians(MAX_STEER_DEG) * _steering_part(abs(forward) * 3.6)
        braking = self._brake * _BRAKE_M_S2 + _HAND_BRAKE_M_S2 * pedals.hand_brake
        tyres = min(TYRE_FRICTION * GRAVITY, max(-TYRE_FRICTION * GRAVITY, self._engine))
        braking = min(braking, TYRE_FRICTION * GRAVITY)
        resistance = braking + _ROLLING_M_S2 + _AIR * forward * forward
        if pedals.direction != 0 and self._throttle < 0.05:
            resistance += _ENGINE_DRAG_M_S2 * min(1.0, abs(forward))
        if forward < _KINEMATIC_M_S:
            after = _slowed(forward + (tyres - GRAVITY * slope) * step, resistance * step)
            motion.forward = after
            used = min(1.0, (abs(tyres) + braking) / (TYRE_FRICTION * GRAVITY))
            left = math.sqrt(max(1.0 - used**2, _LEAST_GRIP_LEFT**2)) * TYRE_FRICTION * GRAVITY
            most = left / max(abs(after), 0.1)
            aim = min(most, max(-most, after * math.tan(steer) / self.wheelbase))
            is_sliding = abs(motion.right - motion.yaw_rate * self._rear) > _ROLLING_M_S
            motion.yaw_rate += (aim - motion.yaw_rate) * min(1.0, step / _YAW_LAG_S)
            missing = motion.yaw_rate * self._rear - motion.right
            if is_sliding:  # it came from above that speed, or was pushed; only grip ends that
                spare = max(_LEAST_GRIP_LEFT * left, left - abs(after * motion.yaw_rate)) * step
                missing = min(spare, max(-spare, missing))
            motion.right += missing
            return
        used = tyres - math.copysign(braking, forward)
        grip = TYRE_FRICTION * GRAVITY
        left = math.sqrt(max(1.0 - (used / grip) ** 2, _LEAST_GRIP_LEFT**2)) * grip
        shift = _HEIGHT * used / GRAVITY
        right, yaw_rate, front, rear = motion.right, motion.yaw_rate, self._front, self._rear
        aim = math.tan(steer)  # so that without slip it is the kinematic model
        front_slip = (right + front * yaw_rate) / forward - aim
        rear_slip = (right - rear * yaw_rate) / forward
        # Forces are taken as proportional to the slip at the end of the step, with the ratio at its beginning: such a
        # step is stable at any speed.
        front_ratio = left * (rear / self.wheelbase - shift) * _saturation(front_slip)
        rear_ratio = left * (front / self.wheelbase + shift) * _saturation(rear_slip)
        both = step * (front_ratio + rear_ratio) / forward
        moment = step * (front * front_ratio - rear * rear_ratio) / forward
        spin = step * (front * front * front_ratio + rear * rear * rear_ratio) / forward / self._gyration
        a, b = 1.0 + both, moment + step * forward
        c, d = moment / self._gyration, 1.0 + spin
        p = right + step * front_ratio * aim
        q = yaw_rate + step * front * front_ratio * aim / self._gyration
        determinant = a * d - b * c
        motion.right = (p * d - b * q) / determinant
        motion.yaw_rate = (a * q - c * p) / determinant
        side_force = -front_ratio * ((motion.right + front * motion.yaw_rate) / forward - aim)
        drag = side_force * math.sin(steer)
        pulled = forward + (tyres - GRAVITY * slope - drag + motion.right * motion.yaw_rate) * step
        motion.forward = _slowed(pulled, resistance * step)


def _towards(value: float, target: float, rates: tuple[float, float], step: float) -> float:
    """An input that follows its target with limited rates."""
    change = target - value
    away, back = rates
    limit = (away if (target > 0) == (change > 0) else back) * step
    return target if abs(change) <= limit else value + math.copysign(limit, change)


def _steering_part(kmh: float) -> float:
    (low, first), (high, last) = STEERING_CURVE
    return first + (last - first) * min(1.0, max(0.0, (kmh - low) / (high - low)))


def _saturation(slip: float) -> float:
    """Lateral force for each radian of slip, in units of grip times load."""
    scaled = _STIFFNESS * slip
    return _STIFFNESS if abs(scaled) < 1e-3 else math.tanh(scaled) / slip


def _slowed(speed: float, loss: float) -> float:
    """A speed after resistance, which stops but does not push back."""
    return math.copysign(max(0.0, abs(speed) - loss), speed)
